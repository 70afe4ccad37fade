"""Errors in the shape of the API whose route was called: OpenAI's, or Anthropic's under `/v1/messages`."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from engine.errors import MissingError, RequestError, UserError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}

ANTHROPIC_ROUTE = "/v1/messages"
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`, the type chosen by the HTTP status."""
    return {"error": {"message": message, "type": TYPES.get(status, "server_error"), "param": param, "code": code}}


def anthropic_error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """`{"type": "error", "error": {"type", "message"}}`, the inner type chosen by the HTTP status; with `details` in
    the error when there is a code."""
    error: dict[str, Any] = {"type": ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
    return {"type": "error", "error": error | ({"details": {"error_code": code}} if code else {})}


class ErrorResponse(JSONResponse):
    """An error, which takes the shape that belongs to the request's path when it is sent."""

    def __init__(self, status: int, message: str, param: str | None, code: str | None) -> None:
        super().__init__(error_body(status, message, param, code), status)
        self._message = message
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if f"{scope['path']}/".startswith(f"{ANTHROPIC_ROUTE}/"):
            self.body = self.render(anthropic_error_body(self.status_code, self._message, self._code))
            self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def error_response(status: int, message: str, param: str | None = None, code: str | None = None) -> ErrorResponse:
    return ErrorResponse(status, message, param, code)


def refusal(status: int, message: str, code: str | None = None, retry_after: int | None = None) -> ErrorResponse:
    """The error of a request that is refused before its route is reached; `retry_after` is in seconds."""
    answer = error_response(status, message, code=code)
    if retry_after is not None:
        answer.headers["retry-after"] = str(retry_after)
    return answer


def user_error_response(error: UserError) -> JSONResponse:
    """HTTP 400, or 404 for what is not there, with the field and code where the error knows them."""
    if isinstance(error, RequestError):
        return error_response(404 if isinstance(error, MissingError) else 400, str(error), error.param, error.code)
    return error_response(400, str(error))


def install(app: FastAPI) -> None:
    """Answer every error of `app` in this shape."""
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(UserError, _on_user_error)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


async def _on_validation(request: Request, error: Exception) -> JSONResponse:
    first: dict[str, Any] = dict(error.errors()[0]) if isinstance(error, RequestValidationError) else {}
    if first.get("type") == "json_invalid":
        return error_response(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', '')}")
    param = _field(first.get("loc", ())[1:])
    if not param and "json" not in request.headers.get("content-type", "").lower():
        return error_response(400, "the body must be a JSON object, sent with content-type: application/json")
    message = str(first.get("msg", error)).removeprefix("Value error, ")
    return error_response(400, f"{param}: {message}" if param else message, param or None)


def _field(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` as `messages[0].role`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


async def _on_user_error(_: Request, error: Exception) -> JSONResponse:
    return user_error_response(error if isinstance(error, UserError) else UserError(str(error)))


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else HTTPStatus(status).phrase
    return error_response(status, detail)


async def _on_bug(_: Request, error: Exception) -> JSONResponse:
    # The traceback is logged by the server, to which the error goes on.
    return error_response(500, f"internal error: {type(error).__name__}")
