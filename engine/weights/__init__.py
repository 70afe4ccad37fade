"""Checkpoints on disk become packed weights in memory."""
