"""Every error CIAR raises on purpose. Knows nothing of networks or models.

CiarError
|-- InvalidRequest      the caller asked for something impossible; retrying cannot help
|   |-- InvalidPrompt   the prompt is empty, too long, or has no known word
|   `-- InvalidDraft    a Draft that does not fit the session it was sent to
|-- ModelUnavailable    unknown model name, or its weights are not where they should be
|-- ModelMismatch       device and cloud hold weights or vocabularies that do not belong together
|-- Overloaded          the server has no free session; try again after `retry_after_s`
|-- SessionLost         the stream ended without Finish; the device may resume what it owns
`-- CloudUnreachable    no server answered within the deadline
    `-- Refused         one did, and does not want this device: repeating it cannot help
"""

from __future__ import annotations


class CiarError(Exception):
    """Base of all deliberate errors: `what` happened, `why`, and `next_step` for the reader."""

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.next_step = what, why, next_step

    def __str__(self) -> str:
        return ". ".join(part.rstrip(".") for part in (self.what, self.why, self.next_step) if part)


class InvalidRequest(CiarError):
    """The caller asked for something impossible; retrying cannot help."""


class InvalidPrompt(InvalidRequest):
    """The prompt is empty, too long, or has no known word."""


class InvalidDraft(InvalidRequest):
    """A Draft that does not fit the session it was sent to."""


class ModelUnavailable(CiarError):
    """Unknown model name, or its weights are not where they should be."""


class ModelMismatch(CiarError):
    """Device and cloud hold weights or vocabularies that do not belong together."""


class Overloaded(CiarError):
    """The server has no free session; try again after `retry_after_s` seconds."""

    def __init__(self, what: str, why: str = "", next_step: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(what, why, next_step)
        self.retry_after_s = retry_after_s


class SessionLost(CiarError):
    """The stream ended without Finish; the device may resume what it owns."""


class CloudUnreachable(CiarError):
    """No server answered within the deadline."""


class Refused(CloudUnreachable):
    """A server answered, and does not want this device; repeating it cannot help."""
