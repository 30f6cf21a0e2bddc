"""Checkpoints that are complete or absent: written to a temporary folder, fsynced, renamed; verified by checksum.

Finding and checking them needs no torch, so pages can show whether a run can be resumed.
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

FORMAT = 2  # format 1 kept neither the position in the epoch nor random states, so no run can continue from it exactly
STATE, FACTS = "state.pt", "facts.json"
_OWN_SHA256 = "facts_sha256"  # of all other facts; the checkpoints of earlier versions have none
_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")


def save(folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any], *, keep: int | None = 2) -> Path:
    """Write folder/step-<step>/ (state.pt, facts.json with the sha256 of both) and drop all but the newest `keep`.

    state: tensors and plain values only, so that it loads with weights_only=True. keep: None drops nothing. A second
    checkpoint of the same step goes to step-<step>-2: replacing the first would leave a moment without any.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    final = _unused(folder, step)
    for left in folder.glob(".step-*.tmp"):
        _clear(left)  # by a trainer that was killed while writing
    temporary = folder / f".{final.name}.tmp"
    temporary.mkdir()
    try:
        with (temporary / STATE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        facts = {**facts, "format": FORMAT, "step": step, "sha256": sha256(temporary / STATE)}
        facts["bytes"] = (temporary / STATE).stat().st_size
        facts[_OWN_SHA256] = _digest(json.loads(json.dumps(facts)))  # as they will be read
        with (temporary / FACTS).open("w") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        _clear(temporary)  # on a full disk, half a checkpoint takes the space needed to report the error
        raise
    temporary.rename(final)
    _sync_folder(folder)
    if keep is not None:
        for old in steps(folder)[:-keep]:
            _clear(old)
    return final


def steps(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first. Manual copies are ignored."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()), key=_place)


def facts_of(path: Path) -> dict[str, Any]:
    """A checkpoint's facts, without reading its state. Raises RunError if the checkpoint cannot be complete."""
    try:
        facts = json.loads((path / FACTS).read_bytes())
    except FileNotFoundError:
        raise RunError(f"Checkpoint {path.name} is damaged: it has no {FACTS}.") from None
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str):
        raise RunError(f"Checkpoint {path.name} is damaged: its {FACTS} cannot be read.")
    if facts.get(_OWN_SHA256, own := _digest(facts)) != own:
        raise RunError(f"Checkpoint {path.name} is damaged: its {FACTS} has changed since it was written.")
    try:
        size = (path / STATE).stat().st_size
    except FileNotFoundError:
        raise RunError(f"Checkpoint {path.name} is damaged: it has no {STATE}.") from None
    if size != facts.get("bytes", size):
        raise RunError(f"Checkpoint {path.name} is damaged: it has {size:,} of {facts['bytes']:,} bytes.")
    return facts


def is_sealed(facts: dict[str, Any]) -> bool:
    """Whether a checksum covers these facts themselves; earlier versions wrote none."""
    return _OWN_SHA256 in facts


def check(path: Path) -> dict[str, Any]:
    """A checkpoint's facts, after its state was read and verified. Raises RunError if the state has changed."""
    facts = facts_of(path)
    found = sha256(path / STATE)
    if found != facts["sha256"]:
        raise RunError(f"Checkpoint {path.name} is damaged: its sha256 is {found[:12]}, not {facts['sha256'][:12]}.")
    return facts


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, facts). Raises RunError if the state has changed since it was written."""
    import torch

    facts = check(path)
    return torch.load(path / STATE, map_location="cpu", weights_only=True), facts


def drop(folder: Path, *, but: Collection[str]) -> None:
    """Remove all checkpoints of a folder except those named in `but`."""
    for path in steps(folder):
        if path.name not in but:
            _clear(path)


def drop_newer(path: Path) -> None:
    """Remove the checkpoints of the same folder that are newer than this one."""
    drop(path.parent, but=[other.name for other in steps(path.parent) if _place(other) <= _place(path)])


def _place(path: Path) -> tuple[int, int]:
    """(step, number within this step): the order in which checkpoints were written."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1]), int(found[2] or 1)


def _unused(folder: Path, step: int) -> Path:
    """A path after all others of this step, even if older ones were dropped: a reused number would not be newest."""
    last = max((number for at, number in map(_place, steps(folder)) if at == step), default=0)
    return folder / (f"step-{step:08d}" + (f"-{last + 1}" if last else ""))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(facts: dict[str, Any]) -> str:
    """The sha256 of a checkpoint's facts, except for this sha256 itself."""
    others = {key: value for key, value in facts.items() if key != _OWN_SHA256}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _clear(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
