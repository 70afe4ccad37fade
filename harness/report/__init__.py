"""Tables, plots and comparisons, read from the store alone."""
