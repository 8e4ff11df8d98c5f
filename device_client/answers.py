"""Errors as HTTP answers: one JSON form, one table of status codes. Knows nothing of models or clouds."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from device_client.wish import complaint
from shared.errors import (
    CiarError,
    CloudUnreachable,
    InvalidDraft,
    InvalidRequest,
    ModelMismatch,
    ModelUnavailable,
    Overloaded,
    SessionLost,
)

# First match wins, so subclasses stand before their bases. An InvalidDraft is our mistake, not the caller's.
STATUS: Mapping[type[CiarError], int] = {
    InvalidDraft: 500,
    InvalidRequest: 422,
    ModelMismatch: 409,
    Overloaded: 429,
    CloudUnreachable: 503,
    SessionLost: 503,
    ModelUnavailable: 503,
}
DOCS = "the paths and fields are described at /docs"


class Failure(BaseModel):
    """Why there is no picture."""

    type: str
    message: str
    next_step: str


class Failed(BaseModel):
    """The body of every answer that is no success."""

    error: Failure


def install(app: FastAPI) -> None:
    """Answer every error of the application in this form."""
    app.add_exception_handler(CiarError, _on_ciar_error)
    app.add_exception_handler(RequestValidationError, _on_bad_body)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


def failure(status: int, error: CiarError) -> JSONResponse:
    """A deliberate error as an answer; Overloaded says when to come back."""
    headers = {"Retry-After": str(math.ceil(error.retry_after_s))} if isinstance(error, Overloaded) else None
    message = ". ".join(part.rstrip(".") for part in (error.what, error.why) if part)
    body = Failure(type=type(error).__name__, message=message, next_step=error.next_step)
    return _failed(status, body, headers)


def _failed(status: int, body: Failure, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(Failed(error=body).model_dump(), status, headers)


async def _on_ciar_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, CiarError)
    return failure(next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500), error)


async def _on_bad_body(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # loc begins with "body"; what follows a field's name only says which member of a union was tried.
    found = [" ".join((*map(str, item["loc"][1:2]), complaint(item))) for item in error.errors()]
    return _failed(422, Failure(type="InvalidRequest", message="; ".join(found), next_step=DOCS))


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = Failure(type="HttpError", message=str(error.detail), next_step=DOCS)
    return _failed(error.status_code, body, error.headers)


async def _on_bug(_: Request, error: Exception) -> Response:
    """The traceback goes to the log of the service, not to the caller."""
    return _failed(500, Failure(type="InternalError", message="the device failed", next_step="see its log"))
