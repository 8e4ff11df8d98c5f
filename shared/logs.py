"""How both programs log: a line for a person or a JSON object for a program, with the id of the image it is
about. Knows nothing of what is logged.

The device names every image it begins and sends the name along, so that one id finds the lines of both sides.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from queue import Full, Queue
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]
REQUEST_ID = "x-request-id"  # the metadata that carries it
REQUEST_FIELD = "request_id"  # the attribute of a log record that does
_WAITING = 10_000  # lines
_FAREWELL_S = 1.0  # for the last lines, at the end of the program
_ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_current: ContextVar[str] = ContextVar("ciar_request_id", default="")


def new_request_id() -> str:
    """A name for one image, unlike any other."""
    return secrets.token_hex(8)


def current_request_id() -> str:
    """The name of the image or request this task is about; a new one where it is about none."""
    return _current.get() or new_request_id()


def known_request_id(given: object) -> str:
    """The name that came with a request, or a new one if that is missing or fit for no log."""
    return given if isinstance(given, str) and _ALLOWED.fullmatch(given) else new_request_id()


@contextmanager
def about(request_id: str) -> Iterator[None]:
    """Whatever is logged in here, in this task, is about that image."""
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)


def log_to_stderr(program: str, form: LogFormat, level: int = logging.INFO) -> None:
    """Set the process's logging up.

    A thread of its own writes: where nobody reads stderr on, lines are lost, and the program goes on.
    """
    lines: Queue[logging.LogRecord | None] = Queue(_WAITING)
    handler = _Enqueue(lines)
    handler.setFormatter(JsonLines(program) if form == "json" else Lines(program))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").addFilter(is_news)
    writer = threading.Thread(target=_write, args=(lines, sys.stderr), name="log", daemon=True)
    writer.start()
    atexit.register(_flush, lines, writer)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a record says something. grpc.aio polls a pipe that another thread may just have emptied, or
    has an answer left for a loop that has ended; neither does harm, and asyncio logs both as errors."""
    error = record.exc_info[1] if record.exc_info else None
    harmless = isinstance(error, BlockingIOError) or str(error) == "Event loop is closed"
    return not (harmless and "PollerCompletionQueue" in record.getMessage())


class _Enqueue(QueueHandler):
    """Formats a line where it comes from; never waits."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put the line with the others, or lose it."""
        with suppress(Full):
            self.queue.put_nowait(record)


def _write(lines: Queue[logging.LogRecord | None], stream: TextIO) -> None:
    while (record := lines.get()) is not None:
        with suppress(OSError, ValueError):  # nobody is there any more
            stream.write(f"{record.msg}\n")
            stream.flush()


def _flush(lines: Queue[logging.LogRecord | None], writer: threading.Thread) -> None:
    with suppress(Full):
        lines.put_nowait(None)
        writer.join(_FAREWELL_S)


def _request_id(record: logging.LogRecord) -> str:
    """The image a line is about: the line says so itself, or the task it comes from does."""
    return getattr(record, REQUEST_FIELD, "") or _current.get()


class Lines(logging.Formatter):
    """`program: message [request]`."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program}: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, without a traceback."""
        request_id = _request_id(record)
        return super().formatMessage(record) + (f" [{request_id}]" if request_id else "")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, program, logger, message, request_id, traceback."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """The object; what does not apply is left out."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "program": self._program,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": _request_id(record),
            "traceback": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps({name: value for name, value in line.items() if value})
