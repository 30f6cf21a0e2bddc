"""Checkpoints that are whole or absent: written to a temporary folder, fsynced, renamed; read back by checksum."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from sousa_engine.errors import RunError


def save(folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any], *, keep: int = 2) -> Path:
    """Write folder/step-<step>/ (state.pt, facts.json with its sha256) and drop all but the newest `keep`.

    state: tensors and plain values only, so that it loads with weights_only=True.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    _clear(temporary)
    temporary.mkdir()
    try:
        with (temporary / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        facts = {**facts, "step": step, "sha256": _sha256(temporary / "state.pt")}
        with (temporary / "facts.json").open("w") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        _clear(temporary)  # on a full disk, half a checkpoint takes the room that telling of it needs
        raise
    _clear(final)
    temporary.rename(final)
    _sync_folder(folder)
    for old in steps(folder)[:-keep]:
        _clear(old)
    return final


def steps(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, facts). Raises RunError when the file is not what was written."""
    facts = json.loads((path / "facts.json").read_text())
    found = _sha256(path / "state.pt")
    if found != facts["sha256"]:
        raise RunError(f"Checkpoint {path.name} is damaged: sha256 {found[:12]}, written as {facts['sha256'][:12]}.")
    return torch.load(path / "state.pt", map_location="cpu", weights_only=True), facts


def _sha256(path: Path) -> str:
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
