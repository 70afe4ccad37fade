"""A small, readable inference engine for hybrid coding models."""
