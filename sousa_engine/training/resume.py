"""From where a run can go on: its newest checkpoint that is whole, or a sentence why there is none. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sousa_engine.core.errors import RunError
from sousa_engine.training import checkpoint

CHECKPOINTS, BEST = "checkpoints", "best"  # folders in the run's own


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """facts: what the run knew of itself there (data, weights, versions, device). damaged: a sentence each, of newer
    checkpoints that had to be passed over."""

    path: Path
    step: int
    epoch: int
    facts: Mapping[str, Any]
    damaged: tuple[str, ...] = ()


def has_checkpoints(run_dir: Path) -> bool:
    return bool(checkpoint.steps(run_dir / CHECKPOINTS))


def find(run_dir: Path, *, thorough: bool = True) -> ResumePoint:
    """The newest good checkpoint of a run. thorough: by checksum; otherwise by what its folder looks like.

    Raises RunError, saying why the run cannot go on: no checkpoint, none that is whole, or one of an older version.
    """
    look: Callable[[Path], dict[str, Any]] = checkpoint.check if thorough else checkpoint.facts_of
    damaged: list[str] = []
    for path in reversed(checkpoint.steps(run_dir / CHECKPOINTS)):
        try:
            facts = look(path)
            if facts.get("format") != checkpoint.FORMAT:
                raise _OtherVersion(
                    f"Its checkpoint {path.name} was written by another version, which kept too little to go on from."
                )
            if facts["best"]:
                look(run_dir / BEST / facts["best"])
        except _OtherVersion:
            raise
        except (RunError, OSError, KeyError) as error:
            damaged.append(str(error) if isinstance(error, RunError) else f"Checkpoint {path.name}: {error!r}.")
            continue
        return ResumePoint(
            path=path, step=facts["step"], epoch=facts["epoch"], facts=facts.get("run", {}), damaged=tuple(damaged)
        )
    if damaged:
        raise RunError(f"It cannot go on: {' '.join(damaged)}")
    raise RunError("It has no checkpoint: it ended before the first one was written.")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(what forbids to go on, what only makes the result not the same bit for bit), a sentence each."""
    forbids, loosens = [], []
    if then.get("data") != now.get("data"):
        forbids.append("The data set is another one since then: its clips, labels or splits changed.")
    if then.get("weights") != now.get("weights"):
        forbids.append(f"The backbone's weights are others: {now.get('weights')}, and then {then.get('weights')}.")
    for what in ("device", "threads"):
        if then.get(what) != now.get(what):
            loosens.append(f"{what} {then.get(what)} then, {now.get(what)} now")
    old, new = then.get("versions", {}), now.get("versions", {})
    loosens += [f"{name} {old.get(name)} then, {new.get(name)} now" for name in new if new.get(name) != old.get(name)]
    return forbids, loosens


class _OtherVersion(RunError):
    """Whole, and of no use: an older one beside it would be no better."""
