"""Anthropic's messages API over the same dialogue as chat completions."""
