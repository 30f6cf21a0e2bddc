"""Errors in the studio's terminal: one line for an error of the engine, a traceback for a bug.

Streamlit logs every error of a page with its traceback before app.py's on_script_error is called, and pages that
refresh every few seconds raise the same error every few seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from streamlit.runtime.scriptrunner import RerunException, StopException

from sousa_engine.core.errors import SousaError

LOGGER = "streamlit.error_util"
QUIET_S = 600.0  # an error is logged again if it was not raised for this long
_MOST = 1000  # sentences kept


class OneLine(logging.Filter):
    """Reduce the record of a SousaError to its sentence, and drop repetitions."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock_s = clock_s
        self._last_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, StopException | RerunException):  # the tab was closed while the error was shown
            error = error.__context__
        if not isinstance(error, SousaError):
            return True
        sentence = " ".join(str(error).split())
        now_s = self._clock_s()
        is_new = now_s - self._last_s.get(sentence, -QUIET_S) >= QUIET_S
        if len(self._last_s) >= _MOST:
            self._last_s.clear()
        self._last_s[sentence] = now_s
        record.msg, record.args, record.exc_info, record.exc_text = f"sousa-engine: {sentence}", None, None, None
        return is_new
