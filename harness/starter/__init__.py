"""Twelve small SWE-bench-format instances of our own."""
