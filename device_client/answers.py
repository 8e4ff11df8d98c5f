"""Errors as HTTP answers: one JSON form, one table of status codes. Knows nothing of models or clouds."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from device_client.jobs import JobCancelled
from device_client.wish import complaint
from shared.errors import (
    CiarError,
    CloudUnreachable,
    InvalidDraft,
    InvalidPrompt,
    InvalidRequest,
    ModelMismatch,
    ModelUnavailable,
    Overloaded,
    SessionLost,
)
from shared.logs import about

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")  # what a caller may name a request


class UnknownModel(InvalidRequest):
    """A model that is not served here."""


# First match wins, so subclasses stand before their bases. An InvalidDraft is our mistake, not the caller's.
STATUS: Mapping[type[CiarError], int] = {
    UnknownModel: 404,
    JobCancelled: 409,
    InvalidDraft: 500,
    InvalidRequest: 422,
    ModelMismatch: 409,
    Overloaded: 429,
    CloudUnreachable: 503,
    SessionLost: 503,
    ModelUnavailable: 503,
}
DOCS = "the paths and fields are described at /docs"
OPENAI = "/v1/"  # below this path errors have OpenAI's form
# OpenAI's clients repeat some statuses by themselves; a repetition cannot help where the weights differ.
NO_RETRY = {"x-should-retry": "false"}


class Failure(BaseModel):
    """Why there is no picture."""

    type: str
    message: str
    next_step: str


class Failed(BaseModel):
    """The body of every answer that is no success."""

    error: Failure


class OpenAIFailure(BaseModel):
    """The same in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIFailed(BaseModel):
    """The body of every answer below /v1/ that is no success."""

    error: OpenAIFailure


def install(app: FastAPI) -> None:
    """Answer every error of the application in this form, and name every request."""
    app.add_middleware(RequestIds)
    app.add_exception_handler(CiarError, _on_ciar_error)
    app.add_exception_handler(RequestValidationError, _on_bad_body)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


class RequestIds:
    """Every answer carries `x-request-id`: the caller's own name for the request, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the name in it."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = (b"x-request-id", request_id(scope).encode())
                message = {**message, "headers": [*message.get("headers", ()), name]}
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with about(request_id(scope)):  # pictures drawn for it carry the name on to the cloud
            await self._app(scope, receive, named)


def request_id(scope: Scope) -> str:
    """The name of the request that is being answered."""
    names: dict[str, str] = scope.setdefault("state", {})
    if "request_id" not in names:
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        names["request_id"] = given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
    return names["request_id"]


def status_of(error: BaseException) -> int:
    """The status code of an error; what nobody thought of is 500."""
    return next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)


def explain(error: BaseException) -> Failure:
    """An error in words; of what nobody thought of, nothing is told: the log of the service has it."""
    if not isinstance(error, CiarError):
        return Failure(type="InternalError", message="the device failed", next_step="see its log")
    message = ". ".join(part.rstrip(".") for part in (error.what, error.why) if part)
    return Failure(type=type(error).__name__, message=message, next_step=error.next_step)


def openai_explain(status: int, why: Failure, param: str | None = None) -> OpenAIFailed:
    """The same as OpenAI's clients expect it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if status == 429 else kind
    message = ". ".join(part.rstrip(".") for part in (why.message, why.next_step) if part)
    code = re.sub(r"(?<!^)(?=[A-Z])", "_", why.type).lower()
    return OpenAIFailed(error=OpenAIFailure(message=message, type=kind, param=param, code=code))


def failure(status: int, error: CiarError) -> JSONResponse:
    """A deliberate error as an answer; Overloaded says when to come back."""
    return JSONResponse(Failed(error=explain(error)).model_dump(), status, _hints(error))


def _hints(error: BaseException) -> Mapping[str, str] | None:
    if isinstance(error, Overloaded):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    return NO_RETRY if isinstance(error, ModelMismatch | JobCancelled) else None


def failed(
    request: Request,
    status: int,
    why: Failure,
    headers: Mapping[str, str] | None = None,
    param: str | None = None,
) -> JSONResponse:
    """An answer that is no success, in the form of the API that was asked."""
    if not request.url.path.startswith(OPENAI):
        return JSONResponse(Failed(error=why).model_dump(), status, headers)
    status = 400 if status == 422 else status
    return JSONResponse(openai_explain(status, why, param).model_dump(), status, headers)


async def _on_ciar_error(request: Request, error: Exception) -> Response:
    param = "prompt" if isinstance(error, InvalidPrompt) else None
    return failed(request, status_of(error), explain(error), _hints(error), param)


async def _on_bad_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # loc begins with "body"; what follows a field's name only says which member of a union was tried.
    found = [" ".join((*map(str, item["loc"][1:2]), complaint(item))) for item in error.errors()]
    fields = [str(name) for item in error.errors() for name in item["loc"][1:2]]
    why = Failure(type="InvalidRequest", message="; ".join(found), next_step=DOCS)
    return failed(request, 422, why, param=fields[0] if fields else None)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    why = Failure(type="HttpError", message=str(error.detail), next_step=DOCS)
    return failed(request, error.status_code, why, error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    """The traceback goes to the log of the service, not to the caller."""
    return failed(request, 500, explain(error), {"x-request-id": request_id(request.scope)})
