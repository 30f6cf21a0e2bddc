"""How an attempt ended that is no longer alive, read from what it left behind."""

from __future__ import annotations

import signal

from sousa_engine.core.errors import DISK_FULL
from sousa_engine.core.records import Run, RunStatus
from sousa_engine.runs.executors import Sighting
from sousa_engine.workspace import run_files


def read(run: Run, sighting: Sighting, *, last_log_line: str = "") -> tuple[RunStatus, str | None]:
    """How a launch ended that is not alive any more, from what it left: exit.json first, then result.json."""
    outcome = (sighting.result or {}).get("outcome")
    said = (sighting.result or {}).get("reason")
    stop_asked = run.status is RunStatus.STOPPING
    if sighting.exit is None:
        gone = "Its keeper was killed"
        if outcome == "finished":
            return RunStatus.FINISHED, said
        if outcome == "stopped":
            return RunStatus.STOPPED, f"{gone}, so the trainer saved and stopped. {said or ''}".strip()
        if outcome == "failed":
            return RunStatus.FAILED, said or f"{gone}; the trainer failed and gave no reason."
        if run.kill_requested_at_ms is not None:
            return RunStatus.STOPPED, "Stopped at once, as asked: work since its last checkpoint is lost."
        if sighting.was_rebooted:
            return RunStatus.LOST, "The machine was started again while it trained."
        return RunStatus.LOST, (
            "Neither its keeper nor its trainer lives, and neither wrote how it ended: both were killed"
            + ("." if sighting.was_rebooted is False else ", or the machine lost power or was started again.")
        )
    code, number = sighting.exit["exit_code"], sighting.exit["signal"]
    steps = [step["step"] for step in sighting.steps]
    if code is None and number is None:
        return RunStatus.STOPPED, "Stopped before it started."
    if outcome == "finished":
        return RunStatus.FINISHED, said
    if outcome == "stopped" or code == run_files.EXIT_STOPPED:
        return RunStatus.STOPPED, said or "Stopped."
    if number is not None:
        if run_files.AT_ONCE in steps:
            return RunStatus.STOPPED, "Stopped at once, as asked: work since its last checkpoint is lost."
        if run_files.GRACE_OVER in steps:
            return RunStatus.STOPPED, "It did not stop in time and was killed: work since its last checkpoint is lost."
        if stop_asked and number == signal.SIGTERM:
            return RunStatus.STOPPED, "Stopped before training began."
        if outcome == "failed" and said:  # it had said why before its own clean-up crashed, as CUDA's does
            return RunStatus.FAILED, said
        return RunStatus.FAILED, _killed(number, sighting.exit.get("oom_kills"), sighting.exit.get("oom_whose"))
    if code == run_files.EXIT_FINISHED:
        return RunStatus.FAILED, "The trainer ended without an error and without a result: result.json is missing."
    if said:
        return RunStatus.FAILED, said + _others_killed(sighting.exit.get("oom_kills"), said)
    if code == run_files.EXIT_DISK_FULL:
        return RunStatus.FAILED, f"{DISK_FULL} There was not even room for {run_files.RESULT}."
    last = f" Its last word: {last_log_line[:300]}" if last_log_line else ""
    return RunStatus.FAILED, f"The trainer died: exit code {code}.{last}"


def _killed(number: int, oom_kills: int | None, whose: str | None) -> str:
    """oom_kills: what its cgroup, or the machine (whose), counted while it ran; None where nobody counts."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # of the numbers between SIGRTMIN and SIGRTMAX
        name = "a real-time signal"
    if number != signal.SIGKILL:
        return f"The trainer died: signal {number} ({name})."
    counter = "the machine" if whose == "machine" else "its cgroup"
    if oom_kills:
        such = f"{counter} counted {oom_kills} such kill{'s' if oom_kills > 1 else ''} while it ran"
        cure = "Lower training.batch_size, train fewer runs beside each other, or take a smaller backbone."
        if whose == "machine":
            return f"Most likely out of memory: the trainer was killed ({name}; {such}, of whatever process). {cure}"
        return f"Out of memory: the system killed the trainer ({name}; {such}). {cure}"
    if oom_kills == 0:
        return f"The trainer died: signal {number} ({name}), sent by someone: not for memory, as {counter} counted."
    return f"The trainer died: signal {number} ({name}). Most often the system does that when memory runs out."


def _others_killed(oom_kills: int | None, said: str) -> str:
    """A trainer outlives its data loaders, and then knows only that they went."""
    if not oom_kills or "memory" in said:
        return ""
    return " Meanwhile the system killed something beside it because memory had run out."
