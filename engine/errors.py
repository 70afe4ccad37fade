"""Errors that a person can act on."""


class UserError(Exception):
    """Bad input: one line that names the file, the key and what would be right.

    The command line prints the message and ends with exit status 2; the server answers with HTTP 400.
    """


class CheckpointError(UserError):
    """A checkpoint that cannot be read: truncated, a tensor missing or of the wrong shape, an unknown type."""
