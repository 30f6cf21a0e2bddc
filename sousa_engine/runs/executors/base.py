"""Where runs are carried out: local processes, or anything else with the verbs submit, poll and stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sousa_engine.core.records import Run


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """The visible state of one attempt. Notes of other attempts are left out.

    is_alive: its trainer or its keeper is alive. Looked at first: an attempt not alive has written all it ever will.
    is_orphan: its trainer is alive, its keeper is not.
    trainer_started: whether it got as far as a trainer.
    was_rebooted: the machine was restarted since; None if unknown.
    steps: {"at_ms", "step"} for each step that its keeper took so far: see run_files.
    exit: {"exit_code", "signal", "started_ms", "ended_ms", "oom_kills", ...}, or None if not recorded.
    result: {"outcome": "finished" | "stopped" | "failed", "reason", ...}, or None if the trainer wrote none.
    """

    is_alive: bool
    is_orphan: bool = False
    started_at_ms: int | None = None
    trainer_started: bool = False
    was_rebooted: bool | None = None
    steps: Sequence[Mapping[str, Any]] = ()
    exit: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None


class Executor(Protocol):
    def devices(self, *, fresh: bool = False) -> tuple[str, ...]:
        """The devices that can be used, best first. fresh: look again."""
        ...

    def submit(self, run: Run, nonce: str, *, cpu_slots: int = 1) -> None:
        """Start attempt `nonce` of a run in slot `run.device`. Raises RunError or OSError if that fails.

        cpu_slots: how many runs share the CPU; a run in such a slot gets its share of threads.
        """
        ...

    def poll(self, run: Run, nonce: str) -> Sighting:
        """Look at attempt `nonce`."""
        ...

    def stop(self, run: Run, nonce: str, *, now: bool = False) -> bool:
        """Ask it to save and exit; now: kill it and its child processes. False if there is no process to ask yet."""
        ...

    def kill(self, run: Run, nonce: str) -> bool:
        """Kill whatever is left of it, the keeper too, for an attempt that answers no stop. False if nothing is."""
        ...


def slots(devices: Sequence[str], cpu_slots: int) -> tuple[str, ...]:
    """Where runs can train at the same time: one slot per device, and `cpu_slots` on the CPU: cpu, cpu:1, ..."""
    more = [f"cpu:{number}" for number in range(1, cpu_slots)] if "cpu" in devices else []
    return (*devices, *more)


def device_of(slot: str) -> str:
    """The device of a slot: cpu for cpu:1, else itself."""
    return "cpu" if slot.startswith("cpu:") else slot
