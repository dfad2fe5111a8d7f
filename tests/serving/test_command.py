"""The options that the servers of `xlm-swcm serve` and `xlm-swcm try` share."""

import asyncio
import logging

from modeling_xlm_swcm.serving.command import is_no_cancelled_task


def make_record(message: str, error: BaseException | None) -> logging.LogRecord:
    return logging.LogRecord("uvicorn.error", logging.ERROR, "", 1, message, (), error and (type(error), error, None))


def test_only_tasks_that_uvicorn_cancels_are_hidden():
    message = "Exception in ASGI application\n"
    assert not is_no_cancelled_task(make_record(message, asyncio.CancelledError("Task cancelled")))
    assert not is_no_cancelled_task(make_record("Traceback: asyncio.exceptions.CancelledError", None))
    assert is_no_cancelled_task(make_record(message, ValueError("x")))
    assert is_no_cancelled_task(make_record(message, None))
