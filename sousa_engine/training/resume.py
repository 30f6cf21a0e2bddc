"""Where a run can continue: its newest complete checkpoint, or a sentence that says why there is none. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sousa_engine.core import contents
from sousa_engine.core.errors import RunError
from sousa_engine.data import manifest as manifests
from sousa_engine.data.clips import Manifest
from sousa_engine.training import checkpoint

CHECKPOINTS, BEST = "checkpoints", "best"  # folders inside a run's folder


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """facts: the data, weights, versions and device that the run had there. damaged: a sentence for each newer
    checkpoint that had to be skipped. sealed: a checksum covers the facts."""

    path: Path
    step: int
    epoch: int
    facts: Mapping[str, Any]
    damaged: tuple[str, ...] = ()
    sealed: bool = True


def has_checkpoints(run_dir: Path) -> bool:
    return bool(checkpoint.steps(run_dir / CHECKPOINTS))


def find(run_dir: Path, *, thorough: bool = True, before: Path | None = None) -> ResumePoint:
    """The newest good checkpoint of a run. thorough: verify checksums; otherwise look at names and sizes only.
    before: a checkpoint; it and all newer ones are ignored.

    Raises RunError with the reason if the run cannot continue: no checkpoint, none complete, or one of another version.
    """
    look: Callable[[Path], dict[str, Any]] = checkpoint.check if thorough else checkpoint.facts_of
    damaged: list[str] = []
    found = checkpoint.steps(run_dir / CHECKPOINTS)
    for path in reversed(found[: found.index(before)] if before in found else found):
        try:
            facts = look(path)
            if facts.get("format") != checkpoint.FORMAT:
                raise _OtherVersion(
                    f"Its checkpoint {path.name} was written by another version of this program, "
                    "and holds too little to continue from."
                )
            if facts["best"]:
                look(run_dir / BEST / facts["best"])
        except _OtherVersion:
            raise
        except (RunError, OSError, KeyError) as error:
            damaged.append(str(error) if isinstance(error, RunError) else f"Checkpoint {path.name}: {error!r}.")
            continue
        return ResumePoint(
            path=path,
            step=facts["step"],
            epoch=facts["epoch"],
            facts=facts.get("run", {}),
            damaged=tuple(damaged),
            sealed=checkpoint.is_sealed(facts),
        )
    if damaged:
        raise RunError(f"None of its checkpoints can be used. {' '.join(damaged)}")
    raise RunError("It has no checkpoint: it ended before the first one was written.")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(changes that prevent a run from continuing, changes that may alter the last digits of its results), in words."""
    forbids, loosens = [], []
    if then.get("weights") != now.get("weights"):
        forbids.append(f"The backbone's weights have changed: {then.get('weights')} then, {now.get('weights')} now.")
    for what in ("device", "threads"):
        if then.get(what) != now.get(what):
            loosens.append(f"{what} {then.get(what)} then, {now.get(what)} now")
    old, new = then.get("versions", {}), now.get("versions", {})
    loosens += [f"{name} {old.get(name)} then, {new.get(name)} now" for name in new if new.get(name) != old.get(name)]
    return forbids, loosens


def data_change(then: Mapping[str, Any], manifest: Manifest) -> str:
    """How a data set, all of it scanned, differs from that of a checkpoint with the facts `then`; "" if it does not."""
    kept, now = contents.checked(then.get("contents")), manifests.contents(manifest)
    if not kept:
        if then.get("data") == manifests.fingerprint_of_files(manifest):
            return ""
        return (
            "The data set has changed since then: its clips, labels or splits are different, or its files were moved "
            "or written again. The checkpoint is from an earlier version, which kept only their names, sizes and times."
        )
    if kept.get("version") != now.get("version"):
        return "Another version of this program recorded its data set in another form, so nothing tells if it changed."
    if kept.get("all") == now.get("all"):
        return ""
    return f"The data set has changed since then: {contents.change(kept, now) or 'its clips are in another order'}."


def trusted(found: ResumePoint, manifest: Manifest) -> ResumePoint:
    """`found`; or the checkpoint before it, if only that one was trained on this data set and `found` is not sealed.

    A run keeps its data set, so where two of its checkpoints name different ones, the other is damaged.
    """
    if found.sealed or not data_change(found.facts, manifest):
        return found
    try:
        older = find(found.path.parent.parent, before=found.path)
    except RunError:
        return found
    if older.path == found.path or data_change(older.facts, manifest):
        return found
    said = f"Checkpoint {found.path.name} is damaged: the one before it names this run's data set, and it does not."
    return replace(older, damaged=(*found.damaged, said, *older.damaged))


class _OtherVersion(RunError):
    """A complete checkpoint that cannot be used; older ones would be no better."""
