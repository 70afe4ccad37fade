"""OpenAI's API of items, over the same dialogue as chat completions."""
