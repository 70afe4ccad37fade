"""The step loop: requests, scheduling, the forward step, sampling."""
