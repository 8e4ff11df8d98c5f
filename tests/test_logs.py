"""Which log records are news."""

from __future__ import annotations

import logging

from shared.logs import is_news


def test_an_empty_poll_is_no_news_and_other_errors_are() -> None:
    def record(error: Exception, text: str) -> logging.LogRecord:
        return logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), (type(error), error, None))

    poll = "Exception in callback PollerCompletionQueue._handle_events()()"
    assert not is_news(record(BlockingIOError(11, "unavailable"), poll))
    assert not is_news(record(RuntimeError("Event loop is closed"), poll))
    assert is_news(record(RuntimeError("Event loop is closed"), "another"))
    assert is_news(record(OSError(9, "bad"), poll)) and is_news(record(BlockingIOError(11, "x"), "another"))
