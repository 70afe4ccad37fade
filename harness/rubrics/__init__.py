"""Five 16x-style coding tasks, scored by what can be executed."""
