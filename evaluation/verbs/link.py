"""`ciar-eval link` and `ciar-eval link-check`: a shaped link, and whether it is what it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, Field

from evaluation.link_check import SIZES, markdown, measure, sink
from evaluation.network import LOOPBACK, PROFILES, Profile, ShapedLink, precise_runner, profile_named
from evaluation.run import link_to

PROMPTLY = -10  # a link that waits for a processor would be a slower link


def _hurry() -> None:
    """Come before other programs, where that is allowed."""
    with contextlib.suppress(PermissionError):
        os.nice(PROMPTLY)


class Link(BaseModel):
    """A shaped TCP link in front of a server: rate, one-way delay, jitter, stalls. Ends with SIGTERM."""

    profile: str = Field("4g", description=f"one of {', '.join(PROFILES)}")
    to: str = Field(description="host:port at the far end")
    listen: int = Field(0, description="port on 127.0.0.1; 0 takes any free one", ge=0, le=65535)
    rate_mbps: float | None = Field(None, description="Mb/s each way instead of the profile's")
    delay_ms: float | None = Field(None, description="one-way delay instead of the profile's")
    jitter_ms: float = Field(0.0, description="a burst is up to this much early or late")
    stall_every_s: float = Field(0.0, description="once in every such stretch nothing arrives for --stall-ms")
    stall_ms: float = Field(0.0, description="how long")
    seed: int = Field(0, description="of jitter and stalls", ge=0)

    def run(self) -> None:
        """Carry connections until a signal comes."""
        _hurry()
        with precise_runner() as runner:
            runner.run(self._carry())

    def shape(self) -> Profile:
        """The profile with what was overridden. Raises InvalidRequest."""
        named = profile_named(self.profile)
        return replace(
            named,
            rate_bps=named.rate_bps if self.rate_mbps is None else self.rate_mbps * 1e6,
            delay_s=named.delay_s if self.delay_ms is None else self.delay_ms / 1e3,
            jitter_s=self.jitter_ms / 1e3,
            stall_every_s=self.stall_every_s,
            stall_s=self.stall_ms / 1e3,
        )

    async def _carry(self) -> None:
        async with ShapedLink(self.shape(), self.to, listen=self.listen, seed=self.seed) as link:
            sys.stdout.write(f"link {self.profile} to {self.to} on {link.address}\n")
            sys.stdout.flush()
            stopped = asyncio.Event()
            for kind in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(kind, stopped.set)
            await stopped.wait()


class LinkCheck(BaseModel):
    """One-way times of messages over real links against delay + size / rate, for every profile."""

    repeats: int = Field(5, description="messages of each size; the median is shown", gt=0)
    out: Path | None = Field(None, description="write OUT.md")

    def run(self) -> None:
        """Measure, print the table, write it."""
        _hurry()
        timings = []
        for profile in PROFILES.values():
            if profile == LOOPBACK:
                continue
            with sink() as place, link_to(place.address, profile) as address:
                timings += measure(profile, address, place, self.repeats, SIZES)
        text = markdown(timings)
        sys.stdout.write(text)
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.with_suffix(".md").write_text(text, encoding="utf-8")
