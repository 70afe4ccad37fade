"""Training data: what an expert would say and do on generated instances, as token ids."""
