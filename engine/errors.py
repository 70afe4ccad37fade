"""Errors that a person can act on."""


class UserError(Exception):
    """Bad input: one line that names the file, the key and what would be right.

    The command line prints the message and ends with exit status 2; the server answers with HTTP 400.
    """


class CheckpointError(UserError):
    """A checkpoint that cannot be read: truncated, a tensor missing or of the wrong shape, an unknown type."""


class LostRankError(Exception):
    """A process that holds a part of the model has ended or does not answer: the engine cannot go on."""


class RequestError(UserError):
    """A request that cannot be served as asked. `param` names the field; `code` is the API's machine-readable word."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class MissingError(RequestError):
    """A request that names something which is not there, or no longer."""


class ContextLengthError(RequestError):
    """A prompt, or a prompt and what it may generate, that is longer than the context the engine serves."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="prompt", code="context_length_exceeded")
