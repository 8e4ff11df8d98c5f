"""Is a shaped link what it says? One-way times of messages against `delay + size / rate`."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from evaluation.network import CHUNK, Profile
from shared.errors import CiarError

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 5_000_000)
ANSWER_S = 60.0
PAUSE_S = 0.1  # between messages, so that each finds the line idle
_LENGTH = 8  # bytes in front of a message that say how long it is


@dataclass(frozen=True)
class Timing:
    """Messages of one size: the median one-way time measured, and the formula's, in seconds."""

    link: str
    size: int
    measured_s: float
    formula_s: float

    @property
    def off(self) -> float:
        """How far the measurement is from the formula, as a share of the formula."""
        return self.measured_s / self.formula_s - 1 if self.formula_s else 0.0


class Sink:
    """A listener that notes when each message was there whole, on the clock of `time.perf_counter`."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(ANSWER_S)
        self._arrived: list[float] = []
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def arrival_s(self, count: int) -> float:
        """When message number `count`, from 0, was there. Raises CiarError where it does not come."""
        with self._news:
            if not self._news.wait_for(lambda: len(self._arrived) > count, ANSWER_S):
                raise CiarError(f"message {count} did not arrive within {ANSWER_S:g} s")
            return self._arrived[count]

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

    def _listen(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:  # closed before anyone came
            return
        with connection:
            while length := _exactly(connection, _LENGTH):
                _exactly(connection, int.from_bytes(length, "big") - _LENGTH)
                with self._news:
                    self._arrived.append(time.perf_counter())
                    self._news.notify()


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or none where the other side ended."""
    parts = []
    while size and (part := connection.recv(min(size, CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"" if size else b"".join(parts)


@contextmanager
def sink() -> Iterator[Sink]:
    """A Sink that is closed at the end."""
    place = Sink()
    try:
        yield place
    finally:
        place.close()


def measure(profile: Profile, address: str, place: Sink, repeats: int, sizes: Sequence[int]) -> list[Timing]:
    """Send messages one by one to the link at `address`, whose far end is `place`."""
    host, _, port = address.rpartition(":")
    found, count = [], 0
    with socket.create_connection((host, int(port)), ANSWER_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in sizes:
            message, times = size.to_bytes(_LENGTH, "big") + bytes(size - _LENGTH), []
            for _ in range(repeats):
                time.sleep(PAUSE_S)
                sent_s = time.perf_counter()
                connection.sendall(message)
                times.append(place.arrival_s(count) - sent_s)
                count += 1
            found.append(Timing(profile.name, size, median(times), profile.message_s(size)))
    return found


def markdown(timings: Sequence[Timing]) -> str:
    """A table of milliseconds."""
    lines = ["| link | bytes | formula ms | measured ms | off % |", "| --- | --: | --: | --: | --: |"]
    lines += [
        f"| {t.link} | {t.size} | {1e3 * t.formula_s:.3f} | {1e3 * t.measured_s:.3f} | {100 * t.off:+.1f} |"
        for t in timings
    ]
    return "\n".join(lines) + "\n"
