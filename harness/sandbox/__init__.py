"""Where untrusted code runs: Docker containers or Linux namespaces."""
