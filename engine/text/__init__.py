"""Text in and out: tokenizer, chat template, tool calls, own-token replay."""
