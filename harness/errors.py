"""Errors that a person can act on."""


class UserError(Exception):
    """Bad input: one line that names the file, the key and what would be right.

    The command line prints the message and ends with exit status 2, without a traceback.
    """


class SandboxError(Exception):
    """The sandbox itself failed (daemon gone, disk full): the task ends as `infra_error`, never as a wrong answer."""


class EndpointError(Exception):
    """The model's server failed or cannot be reached: the task ends as `infra_error`, never as a wrong answer."""
