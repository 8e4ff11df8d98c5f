"""What the device shows a cloud server, and whom it believes: certificates and a token. Knows no network."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import InvalidRequest

_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True)
class Identity:
    """PEM bytes. `tls` without a `ca` believes whom the system believes; `cert` and `key` are for mTLS."""

    tls: bool = False
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


def read_identity(  # noqa: PLR0913 - each is an option of the command line
    *,
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None,
    variable: str | None,
) -> Identity:
    """The identity of a few flags; the token of the file, else of an environment variable.

    Raises InvalidRequest naming the flag for what does not work; a token is never shown.
    """
    if (cert is None) != (key is None):
        given, missing = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
        raise InvalidRequest(f"{given} needs {missing}", "a certificate and its key belong together")
    authority = None if ca is None else _read("--tls-ca", ca)
    public = None if cert is None else _read("--tls-cert", cert)
    private = None if key is None else _read("--tls-key", key)
    _try_out(authority, cert, key)
    secret = variable if token_file is None else _read("--token-file", token_file).decode("utf-8", "replace")
    token = secret.strip() if secret else ""
    if (token or token_file) and not _TOKEN.fullmatch(token):
        origin = f"--token-file {token_file}" if token_file else "CIAR_TOKEN"
        raise InvalidRequest(f"{origin} holds no token", "one of ASCII characters without spaces is expected")
    encrypted = tls or authority is not None or public is not None
    return Identity(encrypted, authority, public, private, token or None)


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{flag} {path} cannot be read", str(error.strerror)) from None


def _try_out(authority: bytes | None, cert: Path | None, key: Path | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if authority is not None:
            context.load_verify_locations(cadata=authority.decode("ascii"))
        if cert is not None:
            context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        what = "the files of --tls-ca, --tls-cert and --tls-key do not work"
        why = "PEM is expected, and an unencrypted key that fits its certificate"
        raise InvalidRequest(what, why) from error


def _no_password() -> str:
    """Nobody is there to type one."""
    raise ValueError("the key is encrypted")
