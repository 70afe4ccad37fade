"""A run: its tasks, its store on disk, its outcomes."""
