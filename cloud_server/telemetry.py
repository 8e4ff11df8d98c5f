"""What an operator watches: metrics of one server, in a registry of its own. Knows no models and no wire."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.errors import CiarError

_FORWARD_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TURN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_LAG_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)
_RATE = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POSITIONS = 16  # places of a span that have a label of their own; the others share "16+"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alarm:
    """Acceptance has collapsed if of the last `window` drafts a share below `floor` stood; 0: never."""

    floor: float = 0.05
    window: int = 200


class Telemetry:
    """Names start with `ciar_`; times are in seconds. Safe to use from any thread."""

    def __init__(self, alarm: Alarm = Alarm()) -> None:
        self.registry = CollectorRegistry()
        self._count_images()
        self._count_drafts()
        self._sessions = self._gauge("sessions_active", "Images being drawn now")
        self._forward_s = self._histogram("forward_seconds", "One run of the cloud model", _FORWARD_S)
        self._batch = self._histogram("batch_jobs", "Jobs judged by one run of the cloud model", _BATCH)
        self._rows = self._histogram("batch_rows", "Cache rows in one run of the cloud model", _BATCH)
        moved = self._counter("bytes", "Bytes of frames, up and down", "direction")
        self._up, self._down = moved.labels("up"), moved.labels("down")  # looked up once, not per frame
        self._errors = self._counter("errors", "Sessions ended by an error, by its class", "error")
        self._lag_s = self._histogram("loop_lag_seconds", "How late the event loop was", _LAG_S)
        self._alive = self._gauge("engine_alive", "Whether the engine works or could, however busy")
        collapsed = self._gauge("acceptance_collapsed", "Whether acceptance is below its floor")
        self._watch = _AcceptanceWatch(alarm, collapsed)

    def _count_images(self) -> None:
        self._opened = self._counter("sessions_opened", "Images begun")
        self._resumed = self._counter("sessions_resumed", "Images that came with tokens they owned already")
        self._finished = self._counter("sessions_finished", "Images ended by Finish")
        whole = "of an image drawn here whole"
        self._call_rate = self._histogram("image_call_rate", f"Cloud forwards per token {whole}", _RATE)
        self._local_rate = self._histogram("image_local_rate", f"Share the device kept {whole}", _RATE)

    def _count_drafts(self) -> None:
        self._round_s = self._histogram("round_seconds", "From a draft to its verdict, here", _TURN_S)
        turn = "From a verdict to the next draft: the network there and back, and the device"
        self._turn_s = self._histogram("turn_seconds", turn, _TURN_S)
        self._drafts = self._counter("drafts", "Drafts judged")
        self._judged = self._counter("span_tokens_judged", "Span tokens judged")
        self._accepted = self._counter("span_tokens_accepted", "Span tokens accepted")
        at = "position"
        self._judged_at = self._counter("span_position_judged", "Judged on a right past, by place", at)
        self._accepted_at = self._counter("span_position_accepted", "Those accepted, by place", at)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"ciar_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"ciar_{name}", what, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"ciar_{name}", what, buckets=buckets, registry=self.registry)

    def gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        """One more gauge, read when somebody looks."""
        self._gauge(name, what).set_function(read)

    def session_opened(self, *, resumed: bool) -> None:
        """One more image is being drawn."""
        self._sessions.inc()
        self._opened.inc()
        if resumed:
            self._resumed.inc()

    def session_closed(self) -> None:
        """One image less is being drawn."""
        self._sessions.dec()

    def session_finished(self, rates: tuple[float, float] | None) -> None:
        """An image was ended on purpose; if all of it was drawn here, its call rate and local rate."""
        self._finished.inc()
        if rates is not None:
            self._call_rate.observe(rates[0])
            self._local_rate.observe(rates[1])

    def forward(self, jobs: int, rows: int, seconds: float) -> None:
        """The model ran once for that many jobs in so many cache rows."""
        self._batch.observe(jobs)
        self._rows.observe(rows)
        self._forward_s.observe(seconds)

    def draft(self, judged: int, accepted: int, seconds: float) -> None:
        """One draft was judged, `seconds` after it came."""
        self._drafts.inc()
        self._judged.inc(judged)
        self._accepted.inc(accepted)
        self._round_s.observe(seconds)
        # What stands behind a rejected token was judged on a wrong past and says nothing about its place.
        for place in range(min(accepted + 1, judged)):
            position = str(place) if place < POSITIONS else f"{POSITIONS}+"
            self._judged_at.labels(position).inc()
            self._accepted_at.labels(position).inc(place < accepted)
        if judged:  # models by steps ask, and leave nothing to judge
            self._watch.draft(judged, accepted)

    def turn(self, seconds: float) -> None:
        """The next draft came so long after the verdict."""
        self._turn_s.observe(seconds)

    def moved(self, up: int = 0, down: int = 0) -> None:
        """Bytes of frames came and went."""
        if up:
            self._up.inc(up)
        if down:
            self._down.inc(down)

    def error(self, error: CiarError) -> None:
        """A session ended with this error."""
        self._errors.labels(type(error).__name__).inc()

    def pulse(self, *, alive: bool, lag_s: float) -> None:
        """How the engine is, and how late the event loop was."""
        self._alive.set(alive)
        self._lag_s.observe(lag_s)

    def value(self, name: str, **labels: str) -> float:
        """The current value of a sample. Raises KeyError if there is none of that name."""
        value = self.registry.get_sample_value(name, labels)
        if value is None:
            raise KeyError(name)
        return value


class _AcceptanceWatch:
    """Tells when drafts have stopped being accepted: device and cloud then no longer fit, and nothing else
    would show it, for the images stay right and only become slow."""

    def __init__(self, alarm: Alarm, collapsed: Gauge) -> None:
        self._alarm, self._collapsed = alarm, collapsed
        self._recent: deque[tuple[int, int]] = deque()
        self._judged = self._accepted = 0
        self._raised = False
        self._lock = threading.Lock()

    def draft(self, judged: int, accepted: int) -> None:
        with self._lock:
            self._recent.append((judged, accepted))
            self._judged += judged
            self._accepted += accepted
            if len(self._recent) > self._alarm.window:
                old_judged, old_accepted = self._recent.popleft()
                self._judged -= old_judged
                self._accepted -= old_accepted
            if len(self._recent) == self._alarm.window:
                self._decide(self._accepted / self._judged)

    def _decide(self, share: float) -> None:
        low = share < self._alarm.floor
        if low == self._raised:
            return
        self._raised = low
        self._collapsed.set(low)
        say = "acceptance has collapsed" if low else "acceptance has recovered"
        seen = f"{share:.1%} of the last {self._alarm.window} drafts, floor {self._alarm.floor:.1%}"
        log.log(logging.ERROR if low else logging.INFO, "%s: %s", say, seen)
