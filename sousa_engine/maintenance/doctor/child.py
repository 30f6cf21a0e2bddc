"""Run a command that may crash, hang or print nothing, within a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sousa_engine.workspace import PROJECT_ROOT


class Answer(NamedTuple):
    """code: the exit code, minus the signal number if a signal ended it; None if it ran past its limit."""

    code: int | None
    output: str
    errors: str

    def last_error(self, otherwise: str) -> str:
        """The last line of its errors, at most 300 characters."""
        return (self.errors.strip().splitlines() or [otherwise])[-1][:300]


def run(
    command: Sequence[str], limit_s: float, more_environment: Mapping[str, str] | None = None, *, group: bool = True
) -> Answer:
    """group: start a new process group, and kill all of it at the limit."""
    process = subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=group,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(more_environment or {})},
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()
        return Answer(None, "", "")
    return Answer(process.returncode, output, errors)
