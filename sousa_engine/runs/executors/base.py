"""Where runs are carried out. Local processes now; anything with the same three verbs later: submit, poll, stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sousa_engine.core.records import Run


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What can be seen of one launch, from the outside. Notes of other launches are not in it.

    is_alive: trainer or keeper lives. Taken first, so that a launch not alive has written all it ever will.
    is_orphan: the trainer lives and its keeper does not.
    trainer_started: it got as far as a trainer.
    was_rebooted: the machine was started again since; None where that is not known.
    steps: {"at_ms", "step"} each, as its keeper took them so far: see run_files.
    exit: {"exit_code", "signal", "started_ms", "ended_ms", "oom_kills", ...}, or None if not recorded.
    result: {"outcome": "finished" | "stopped" | "failed", "reason", ...}, or None if the trainer left none.
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
        """The devices that are really there, best first. fresh: look again."""
        ...

    def submit(self, run: Run, nonce: str, *, cpu_slots: int = 1) -> None:
        """Start launch `nonce` of a run in slot `run.device`. Raises RunError or OSError if it cannot be.

        cpu_slots: how many runs share the CPU; one in such a slot gets its share of threads.
        """
        ...

    def poll(self, run: Run, nonce: str) -> Sighting: ...

    def stop(self, run: Run, nonce: str, *, now: bool = False) -> bool:
        """Ask for a checkpoint and an end; now: kill it and all it started. False if there is nobody to ask yet."""
        ...


def slots(devices: Sequence[str], cpu_slots: int) -> tuple[str, ...]:
    """Where runs can train beside each other: one a device, but for the CPU: cpu, cpu:1, ... as many as asked for."""
    more = [f"cpu:{number}" for number in range(1, cpu_slots)] if "cpu" in devices else []
    return (*devices, *more)


def device_of(slot: str) -> str:
    """The device of a slot: cpu for cpu:1, else itself."""
    return "cpu" if slot.startswith("cpu:") else slot
