"""Who may talk to this server, and over what: certificates, bearer tokens, and one guard before every method.

Knows no sessions, no argv and no environment.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from shared.errors import InvalidRequest
from shared.tokens import Tokens, bearer, digest, read_file

HEALTH = "/grpc.health.v1.Health/"
UNKNOWN = "a known token is needed: metadata 'authorization: Bearer TOKEN'"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # no generic where it runs
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]


@dataclass(frozen=True)
class Tls:
    """PEM bytes. With `client_ca`, only devices with a certificate signed by it are let in (mTLS)."""

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC listens with."""
        return grpc.ssl_server_credentials(
            [(self.key, self.cert)], self.client_ca, require_client_auth=self.client_ca is not None
        )


def read_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """The certificate of three flags; None if none is set. Raises InvalidRequest for what does not work."""
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        missing = "--tls-key" if key is None else "--tls-cert"
        raise InvalidRequest(f"{missing} is missing", "TLS needs a certificate and its key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = read_file("--tls-cert", cert), read_file("--tls-key", key)
    authority = None if client_ca is None else read_file("--tls-client-ca", client_ca)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
        if authority is not None:
            context.load_verify_locations(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        what = f"the files of --tls-cert {cert}, --tls-key {key} and --tls-client-ca {client_ca} do not work"
        why = "a PEM certificate, the unencrypted PEM key of it, and a PEM certificate authority are expected"
        raise InvalidRequest(what, why) from error
    return Tls(*files, authority)


def warning(host: str, *, encrypted: bool, guarded: bool) -> str | None:
    """What an operator should know about a server that other machines can reach; None if all is well."""
    if host in LOOPBACK or (encrypted and guarded):
        return None
    lacks = [] if encrypted else ["traffic is not encrypted (--tls-cert, --tls-key)"]
    lacks += [] if guarded else ["anybody may draw (--token-file, CIAR_TOKEN or --tls-client-ca)"]
    return f"{host} is open to other machines: {'; '.join(lacks)}"


class Guard(grpc.aio.ServerInterceptor):
    """The interceptor before every method: without a known token, nothing behind it is reached.

    With no tokens everybody passes. Health checks pass without one unless `health_too`.
    """

    def __init__(self, tokens: Sequence[str] = (), *, health_too: bool = False) -> None:
        self._tokens = Tokens(tokens)
        self._health_too = health_too

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """The method's own handler, or one that refuses."""
        method = str(handler_call_details.method)
        free = method.startswith(HEALTH) and not self._health_too
        if free or self.knows(handler_call_details.invocation_metadata):
            return await continuation(handler_call_details)
        return _REFUSED

    def knows(self, metadata: Any) -> bool:  # noqa: ANN401 - pairs of a type that gRPC does not name
        """Whether who sent this may come in: one of the tokens is in it, or there are none."""
        return not self._tokens or self._tokens.know(_bearer(metadata))

    def caller(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        """Who is asking, for limits per caller: the token where tokens count, else the machine."""
        if self._tokens:
            return f"token {digest(_bearer(context.invocation_metadata()) or '').hex()[:8]}"
        return str(context.peer()).rpartition(":")[0]


def _bearer(metadata: Any) -> str | None:  # noqa: ANN401 - pairs of a type that gRPC does not name
    """The token of a call; None where there is none, or more than one."""
    values = [value for name, value in metadata or () if name == "authorization"]
    return bearer(values[0]) if len(values) == 1 else None


def _no_password() -> str:
    """Nobody is there to type one."""
    raise ValueError("the key is encrypted")


async def _refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, UNKNOWN)


def mark_refused(context: Any) -> None:  # noqa: ANN401 - Ray's copy of a context has no `abort`
    """Make the call end with the status that `Guard` refuses with."""
    context.set_code(grpc.StatusCode.UNAUTHENTICATED)
    context.set_details(UNKNOWN)


# A handler of two streams refuses any kind of call before a message of it is read.
_REFUSED: Handler = grpc.stream_stream_rpc_method_handler(_refuse)
