"""Trains `sweq-nano`, a small model that repairs the generated starter instances as an agent, and nothing else."""
