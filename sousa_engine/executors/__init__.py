"""Where runs are carried out. Local processes now; anything with the same three verbs later: submit, poll, stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sousa_engine.records import Run


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What can be seen of one launch, from the outside. Notes of other launches are not in it.

    is_alive: trainer or keeper lives. Taken first, so that a launch not alive has written all it ever will.
    is_orphan: the trainer lives and its keeper does not.
    trainer_started: it got as far as a trainer.
    exit: {"exit_code", "signal", "started_ms", "ended_ms", "steps": [{"at_ms", "step"}]}, or None if not recorded.
    result: {"outcome": "finished" | "stopped" | "failed", "reason", ...}, or None if the trainer left none.
    """

    is_alive: bool
    is_orphan: bool = False
    started_at_ms: int | None = None
    trainer_started: bool = False
    exit: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None


class Executor(Protocol):
    def slots(self, *, fresh: bool = False) -> tuple[str, ...]:
        """The devices that are really there, best first. fresh: look again."""
        ...

    def submit(self, run: Run, nonce: str) -> None:
        """Start launch `nonce` of a run on `run.device`. Raises RunError or OSError if it cannot be."""
        ...

    def poll(self, run: Run, nonce: str) -> Sighting: ...

    def stop(self, run: Run, nonce: str, *, now: bool = False) -> bool:
        """Ask for a checkpoint and an end; now: end it without. False if there is nobody to ask yet."""
        ...
