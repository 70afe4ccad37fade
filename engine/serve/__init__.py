"""HTTP: OpenAI-compatible routes over the engine's step loop."""
