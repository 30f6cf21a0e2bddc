"""Checkpoints that are whole or absent: written to a temporary folder, fsynced, renamed; read back by checksum.

Finding and checking them needs no torch, so that pages can say whether a run can be resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sousa_engine.core.errors import RunError

FORMAT = 2  # 1 kept no place in the epoch and no randomness: nothing can go on from it exactly
STATE, FACTS = "state.pt", "facts.json"
_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")


def save(folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any], *, keep: int | None = 2) -> Path:
    """Write folder/step-<step>/ (state.pt, facts.json with its sha256) and drop all but the newest `keep`.

    state: tensors and plain values only, so that it loads with weights_only=True. keep: None drops nothing. A second
    one of the same step stands beside the first, step-<step>-2: to replace it would be a moment without any.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    final = _unused(folder, step)
    for left in folder.glob(".step-*.tmp"):
        _clear(left)  # of a trainer that was killed while it wrote
    temporary = folder / f".{final.name}.tmp"
    temporary.mkdir()
    try:
        with (temporary / STATE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        facts = {**facts, "format": FORMAT, "step": step, "sha256": sha256(temporary / STATE)}
        facts["bytes"] = (temporary / STATE).stat().st_size
        with (temporary / FACTS).open("w") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        _clear(temporary)  # on a full disk, half a checkpoint takes the room that telling of it needs
        raise
    temporary.rename(final)
    _sync_folder(folder)
    if keep is not None:
        for old in steps(folder)[:-keep]:
            _clear(old)
    return final


def steps(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first. Copies that someone made beside them are none."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()), key=_place)


def facts_of(path: Path) -> dict[str, Any]:
    """What stands beside a checkpoint, its state not yet read. Raises RunError if it cannot be whole."""
    try:
        facts = json.loads((path / FACTS).read_bytes())
    except FileNotFoundError:
        raise RunError(f"Checkpoint {path.name} is damaged: it has no {FACTS}.") from None
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str):
        raise RunError(f"Checkpoint {path.name} is damaged: its {FACTS} cannot be read.")
    try:
        size = (path / STATE).stat().st_size
    except FileNotFoundError:
        raise RunError(f"Checkpoint {path.name} is damaged: it has no {STATE}.") from None
    if size != facts.get("bytes", size):
        raise RunError(f"Checkpoint {path.name} is damaged: {size:,} bytes of {facts['bytes']:,} are there.")
    return facts


def check(path: Path) -> dict[str, Any]:
    """Its facts, once every byte was read and compared. Raises RunError when the file is not what was written."""
    facts = facts_of(path)
    found = sha256(path / STATE)
    if found != facts["sha256"]:
        raise RunError(f"Checkpoint {path.name} is damaged: sha256 {found[:12]}, written as {facts['sha256'][:12]}.")
    return facts


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, facts). Raises RunError when the file is not what was written."""
    import torch

    facts = check(path)
    return torch.load(path / STATE, map_location="cpu", weights_only=True), facts


def drop(folder: Path, *, but: Collection[str]) -> None:
    """Remove the checkpoints of a folder that are not named."""
    for path in steps(folder):
        if path.name not in but:
            _clear(path)


def drop_newer(path: Path) -> None:
    """Remove the checkpoints beside this one that are newer."""
    drop(path.parent, but=[other.name for other in steps(path.parent) if _place(other) <= _place(path)])


def _place(path: Path) -> tuple[int, int]:
    """(step, number among those of this step): the order in which they were written."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1]), int(found[2] or 1)


def _unused(folder: Path, step: int) -> Path:
    """Behind all of this step, though older ones were dropped: a number that is given again would not be the newest."""
    last = max((number for at, number in map(_place, steps(folder)) if at == step), default=0)
    return folder / (f"step-{step:08d}" + (f"-{last + 1}" if last else ""))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
