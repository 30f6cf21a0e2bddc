"""How an attempt ended, read from the files it left behind."""

from __future__ import annotations

import signal

from sousa_engine.core.errors import DISK_FULL
from sousa_engine.core.records import Run, RunStatus
from sousa_engine.runs.executors import Sighting
from sousa_engine.workspace import run_files

_KILLED_NOW = "Stopped at once, as requested; progress since the last checkpoint is lost."
KILLED_LATE = "It did not stop in time and was killed; progress since the last checkpoint is lost."


def read(run: Run, sighting: Sighting, *, last_log_line: str = "") -> tuple[RunStatus, str | None]:
    """Status and reason of an attempt that is no longer alive: from exit.json first, then result.json."""
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
            return RunStatus.STOPPED, _KILLED_NOW
        if sighting.was_rebooted:
            return RunStatus.LOST, "The machine was restarted during training."
        return RunStatus.LOST, (
            "Its keeper and its trainer are gone, and neither recorded how it ended: both were killed"
            + ("." if sighting.was_rebooted is False else ", or the machine lost power or was restarted.")
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
            return RunStatus.STOPPED, _KILLED_NOW
        if run_files.GRACE_OVER in steps:
            return RunStatus.STOPPED, KILLED_LATE
        if stop_asked and number == signal.SIGTERM:
            return RunStatus.STOPPED, "Stopped before training began."
        if outcome == "failed" and said:  # it gave a reason before its clean-up crashed, as CUDA's can
            return RunStatus.FAILED, said
        return RunStatus.FAILED, _killed(number, sighting.exit.get("oom_kills"), sighting.exit.get("oom_whose"))
    if code == run_files.EXIT_FINISHED:
        return RunStatus.FAILED, f"The trainer exited without an error, but {run_files.RESULT} is missing."
    if said:
        return RunStatus.FAILED, said + _others_killed(sighting.exit.get("oom_kills"), said)
    if code == run_files.EXIT_DISK_FULL:
        return RunStatus.FAILED, f"{DISK_FULL} There was no room even for {run_files.RESULT}."
    last = f" Last line of its log: {last_log_line[:300]}" if last_log_line else ""
    return RunStatus.FAILED, f"The trainer died: exit code {code}.{last}"


def _killed(number: int, oom_kills: int | None, whose: str | None) -> str:
    """oom_kills: counted by its cgroup, or by the machine (whose), while it ran; None if there is no counter."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # between SIGRTMIN and SIGRTMAX
        name = "a real-time signal"
    if number != signal.SIGKILL:
        return f"The trainer died: signal {number} ({name})."
    counter = "the machine" if whose == "machine" else "its cgroup"
    if oom_kills:
        such = f"{counter} counted {oom_kills} such kill{'s' if oom_kills > 1 else ''} while it ran"
        fix = "Lower training.batch_size, train fewer runs at the same time, or choose a smaller backbone."
        if whose == "machine":
            return f"Most likely out of memory: the trainer was killed ({name}; {such}, of any process). {fix}"
        return f"Out of memory: the system killed the trainer ({name}; {such}). {fix}"
    if oom_kills == 0:
        return (
            f"The trainer died: signal {number} ({name}), but not for lack of memory: {counter} counted no such kill."
        )
    return f"The trainer died: signal {number} ({name}). The usual cause is that memory ran out."


def _others_killed(oom_kills: int | None, said: str) -> str:
    """A trainer outlives its data loaders, and then knows only that they are gone."""
    if not oom_kills or "memory" in said:
        return ""
    return " The system killed another process during the run because memory ran out."
