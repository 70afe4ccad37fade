"""Weight-only formats and the matmul of each."""
