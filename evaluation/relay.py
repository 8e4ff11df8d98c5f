"""A `Cloud` that passes everything on to a link: what listens in between overrides what it wants to know."""

from __future__ import annotations

from device_client.link import CloudLink
from shared.messages import Draft, Open, Opened, Usage, Verdict


class Relay:
    """Raises what the link raises."""

    def __init__(self, link: CloudLink) -> None:
        self._link = link

    @property
    def bytes_up(self) -> int:
        """Of the link."""
        return self._link.bytes_up

    @property
    def bytes_down(self) -> int:
        """Of the link."""
        return self._link.bytes_down

    @property
    def resumes(self) -> int:
        """Of the link."""
        return self._link.resumes

    @property
    def answered(self) -> bool:
        """Of the link."""
        return self._link.answered

    async def open(self, order: Open) -> Opened:
        """As the link."""
        return await self._link.open(order)

    async def send(self, draft: Draft) -> None:
        """As the link."""
        await self._link.send(draft)

    async def receive(self) -> Verdict:
        """As the link."""
        return await self._link.receive()

    async def finish(self) -> Usage:
        """As the link."""
        return await self._link.finish()
