"""Bearer tokens: read from files and the environment, kept as digests, compared in constant time.

Knows nothing of gRPC or HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path

from shared.errors import InvalidRequest

_SHORTEST_TOKEN = 16  # characters
_TOKEN = re.compile(rf"[\x21-\x7e]{{{_SHORTEST_TOKEN},4096}}")


class Tokens:
    """The tokens that are let in; with none, everybody is. Keeps no token itself."""

    def __init__(self, tokens: Sequence[str] = ()) -> None:
        self._digests = [digest(token) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def know(self, token: str | None) -> bool:
        """Whether it is one of them."""
        own = digest(token or "")
        return any([hmac.compare_digest(own, known) for known in self._digests])  # all of them, always


def digest(token: str) -> bytes:
    """SHA-256."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def bearer(value: object) -> str | None:
    """The token of an `authorization` value; None where it holds none."""
    kind, _, token = value.partition(" ") if isinstance(value, str) else ("", "", "")
    return token.strip() if kind.lower() == "bearer" else None


def read_file(flag: str, path: Path) -> bytes:
    """The bytes of a file a flag names. Raises InvalidRequest where there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{flag} {path} cannot be read", str(error.strerror)) from None


def read_tokens(file: Path | None, variable: str | None, flag: str = "--token-file") -> tuple[str, ...]:
    """The tokens of a file, one a line, and of an environment variable; a line with # in front is a remark.

    Raises InvalidRequest for a token no device could send, without showing it.
    """
    lines = [] if file is None else read_file(flag, file).decode("utf-8", "replace").splitlines()
    found = [text for line in lines if (text := line.strip()) and not text.startswith("#")]
    if file is not None and not found:
        raise InvalidRequest(f"{flag} {file} holds no token", "one token a line is expected")
    found += [variable.strip()] if variable and variable.strip() else []
    for number, token in enumerate(found, 1):
        if not _TOKEN.fullmatch(token):
            what = f"token {number} of {len(found)} has {len(token)} characters, or some that cannot be sent"
            raise InvalidRequest(what, f"allowed: {_SHORTEST_TOKEN} to 4096 ASCII characters without spaces")
    return tuple(found)
