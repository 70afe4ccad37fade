"""Measurements of the engine: throughput, perplexity."""
