"""One module per operation, in families of equal signatures."""
