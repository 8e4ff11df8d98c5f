"""Who may use the REST service: a bearer token before every route. Knows nothing of what is behind it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from device_client.answers import Failure, failed
from shared.tokens import Tokens, bearer

OPEN = frozenset({"/livez", "/readyz"})  # probes bring no token, and learn nothing else
_WHY = Failure(
    type="Unauthorized",
    message="a known token is needed",
    next_step="send the header 'authorization: Bearer TOKEN'",
)


class Doorkeeper:
    """Without a known token, nothing behind it is reached; with no tokens everybody passes."""

    def __init__(self, app: ASGIApp, tokens: Sequence[str]) -> None:
        self._app, self._tokens = app, Tokens(tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401 in the form of the API that was asked."""
        if scope["type"] == "lifespan" or not self._tokens or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(sent) == 1 and self._tokens.know(bearer(sent[0].decode("latin-1"))):
            await self._app(scope, receive, send)
            return
        answer = failed(Request(scope), 401, _WHY, {"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)
