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
    check_pair(cert, key, "--tls-cert", "--tls-key")
    authority = None if ca is None else _read("--tls-ca", ca)
    public = None if cert is None else _read("--tls-cert", cert)
    private = None if key is None else _read("--tls-key", key)
    _check_authority(authority)
    secret = variable if token_file is None else _read("--token-file", token_file).decode("utf-8", "replace")
    token = secret.strip() if secret else ""
    if (token or token_file) and not _TOKEN.fullmatch(token):
        origin = f"--token-file {token_file}" if token_file else "CIAR_TOKEN"
        raise InvalidRequest(f"{origin} holds no token", "one of ASCII characters without spaces is expected")
    encrypted = tls or authority is not None or public is not None
    return Identity(encrypted, authority, public, private, token or None)


def check_pair(cert: Path | None, key: Path | None, cert_flag: str, key_flag: str) -> None:
    """Raise InvalidRequest unless both flags are unset, or name a certificate and the key of it."""
    if cert is None and key is None:
        return
    if cert is None or key is None:
        given, missing = (cert_flag, key_flag) if key is None else (key_flag, cert_flag)
        raise InvalidRequest(f"{given} needs {missing}", "a certificate and its key belong together")
    _read(cert_flag, cert)
    _read(key_flag, key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        what = f"{cert_flag} {cert} and {key_flag} {key} do not work"
        raise InvalidRequest(what, "a PEM certificate and the unencrypted key of it are expected") from error


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{flag} {path} cannot be read", str(error.strerror)) from None


def _check_authority(authority: bytes | None) -> None:
    try:
        if authority is not None:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise InvalidRequest("the file of --tls-ca does not work", "PEM certificates are expected") from error


def _no_password() -> str:
    """Nobody is there to type one."""
    raise ValueError("the key is encrypted")
