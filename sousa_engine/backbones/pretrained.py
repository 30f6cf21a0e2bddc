"""Weights of backbones: where they are, what they are, and loading them. Imports torch only where tensors are read.

A file is safetensors, or a PyTorch file that loads with weights_only=True; nothing else is ever opened. A file is
accepted by its key tree: every tensor of the backbone, of the right shape, and no other. Nothing falls back silently.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sousa_engine.backbones.spec import Variant, WeightsState
from sousa_engine.errors import WeightsError, nearest
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor, nn

EMBEDDED = Path(__file__).parent / "weights"
HUB_FILE = "model.safetensors"
FILE_NAMES = (HUB_FILE, "model.pth", "pytorch_model.bin")  # looked for in a folder, in this order
PATIENCE_S = 3.0  # how long the hub may take to answer before we call ourselves offline
_ANSWER_HOLDS_S = 60.0
_answers: dict[str, tuple[float, bool]] = {}


def weights_state(variant: Variant, workspace: Workspace, weights: str = "pretrained") -> WeightsState:
    """What `build` would load for `weights` (pretrained, random, or a path), or a sentence that names the ways out.

    Looks, in this order: in the package, in the workspace, in the hub's cache on this machine, on the hub.
    """
    if weights == "random":
        return WeightsState(available=True, label="random weights", path=None, message="")
    if weights != "pretrained":
        return _file_state(Path(weights).expanduser())
    for folder in (EMBEDDED / variant.name, workspace.weights / variant.name):
        file = _file_in(folder)
        if file is not None:
            return _file_state(file, name=f"{variant.name} (embedded)" if folder.parent == EMBEDDED else file.name)
    cached = _cached(variant)
    if cached is not None:
        return _file_state(cached, name=f"{variant.hub_id} (downloaded before)")
    if variant.hub_id and hub_answers(variant.hub_id):
        label = f"pretrained: {variant.hub_id}, downloaded when the run starts"
        return WeightsState(available=True, label=label, path=None, message="")
    return WeightsState(available=False, label="", path=None, message=_ways_out(variant, workspace))


def load_pretrained(module: nn.Module, variant: Variant, family: ModuleType, state: WeightsState) -> str:
    """Load what `weights_state` found into all of `module` but its head; returns the label to record.

    Raises WeightsError if there is nothing to load, or if it is not this backbone's; then the module is unchanged.
    """
    if not state.available:
        raise WeightsError(state.message)
    path = state.path or _download(variant)
    try:
        load_official(module, read(path), family, head_path=variant.head_path)
    except _KeysDiffer as error:
        raise WeightsError(f"{path} does not fit {variant.name}: {error}") from None
    label = f"pretrained: {variant.hub_id}" if state.path is None else state.label
    return f"{label}, sha256 {sha256(path)[:12]}"


def load_official(
    module: nn.Module, state: Mapping[str, Any], family: ModuleType, *, head_path: str | None = None
) -> None:
    """Load a state dict in any naming that `family` can read, from the file's envelope if it has one.

    head_path: a head that stays as it is, whatever the file has for it; None loads the head as well. Raises
    WeightsError if tensors are missing, of another shape, or unknown; the module is then unchanged.
    """
    module.load_state_dict(_matched(module, state, family, head_path), strict=False)


def _matched(module: nn.Module, state: Mapping[str, Any], family: ModuleType, head_path: str | None) -> dict[str, Any]:
    """The state dict in today's names, seen to have exactly the module's keys and shapes (but for the head)."""
    found, wanted = family.translate(unwrap(state)), module.state_dict()
    if head_path is not None:
        found = {key: value for key, value in found.items() if not key.startswith(f"{head_path}.")}
        wanted = {key: value for key, value in wanted.items() if not key.startswith(f"{head_path}.")}
    _check(
        {key: tuple(value.shape) for key, value in found.items()},
        {key: tuple(value.shape) for key, value in wanted.items()},
    )
    return found


def unwrap(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a checkpoint: out of {"state_dict": ...} or {"model": ...}, without DataParallel's `module.`."""
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), Mapping):
            return unwrap(state[key])
    tensors = {str(key): value for key, value in state.items() if hasattr(value, "shape")}
    if tensors and all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU. Raises WeightsError for a file that is truncated or no weights file."""
    import pickle

    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} holds more than tensors, or is no PyTorch file; it is refused, because reading it could run code. "
            f"Convert it to safetensors."
        ) from None
    except Exception as error:  # on bytes that are no weights, torch's reader stumbles over anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} is truncated or no weights file ({first}). Download it again.") from None
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path} holds a {type(found).__name__}, not a state dict.")
    return dict(found)


def import_weights(variant: Variant, family: ModuleType, file: Path, workspace: Workspace) -> WeightsState:
    """Copy a file (or a folder's file) into the workspace, once its key tree is seen to be this backbone's."""
    import torch

    state = _file_state(file.expanduser())
    if not state.available:
        raise WeightsError(state.message)
    assert state.path is not None
    with torch.device("meta"):
        module = family.networks().network(variant, 2, 0)
    try:
        _matched(module, read(state.path), family, variant.head_path)
    except _KeysDiffer as error:
        raise WeightsError(f"{state.path} does not fit {variant.name}: {error}") from None
    folder = workspace.weights / variant.name
    final = folder / (HUB_FILE if state.path.suffix == ".safetensors" else "model.pth")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _copy(state.path, final)
    except OSError as error:
        raise WeightsError(f"{state.path} could not be copied to {folder}: {error.strerror}.") from None
    for name in FILE_NAMES:
        if name != final.name:
            (folder / name).unlink(missing_ok=True)
    return weights_state(variant, workspace)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_answers(hub_id: str) -> bool:
    """Whether the hub can be reached for this model now: one small request, at most PATIENCE_S, remembered a minute.

    The request runs in a thread of its own, because looking up a name can hang longer than any timeout.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    url = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{hub_id}/resolve/main/config.json"
    asked_s, answer = _answers.get(url, (-_ANSWER_HOLDS_S, False))
    if time.monotonic() - asked_s < _ANSWER_HOLDS_S:
        return answer
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(_asks(url)), daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    _answers[url] = (time.monotonic(), bool(found and found[0]))
    return _answers[url][1]


def _asks(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE_S):
            return True
    except (OSError, ValueError):
        return False


def _cached(variant: Variant) -> Path | None:
    """The file in the Hugging Face cache of this machine, if it was downloaded before; never asks the network."""
    if not variant.hub_id:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(variant.hub_id, HUB_FILE)
    return Path(found) if isinstance(found, str) else None


def _download(variant: Variant) -> Path:
    """Fetch the weights from the hub into its cache on this machine (resumed if broken off), showing a progress bar."""
    assert variant.hub_id is not None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(variant.hub_id, HUB_FILE, etag_timeout=PATIENCE_S))
    except Exception as error:  # the hub's client raises the errors of three libraries
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{variant.hub_id} could not be downloaded ({first}). Try again, set model.weights to a file, or take "
            f"model=ast-mini, whose weights are embedded."
        ) from error


def _ways_out(variant: Variant, workspace: Workspace) -> str:
    folder = workspace.weights / variant.name
    if variant.hub_id is None:
        return (
            f"The embedded weights of {variant.name} are missing from {EMBEDDED / variant.name}: restore the file, "
            f"or set model.weights to a file, or to random."
        )
    return (
        f"No weights for {variant.name}: none were imported, and the hub does not answer. Ways out: a weights file "
        f"(model.weights=FILE: {HUB_FILE} of huggingface.co/{variant.hub_id}, or the authors' .pth), which may also "
        f"lie in {folder}; another backbone (model=ast-mini: its weights are embedded); "
        f"or random weights, a control (model.weights=random)."
    )


def _file_state(path: Path, name: str = "") -> WeightsState:
    """State of a file or of the weights file in a folder; a safetensors file is checked for being whole."""
    file = _file_in(path) if path.is_dir() else path
    problem = ""
    if file is None:
        problem = f"{path} holds no weights file. It needs one of: {', '.join(FILE_NAMES)}."
    elif not file.is_file():
        problem = f"There is no file {file}. Set model.weights to a file or folder, to pretrained or to random."
    elif file.suffix == ".safetensors":
        problem = _broken(file)
    label = f"pretrained: {name or file.name}" if file else ""
    return WeightsState(available=not problem, label="" if problem else label, path=file, message=problem)


def _file_in(folder: Path) -> Path | None:
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def _broken(file: Path) -> str:
    """Why a safetensors file cannot be whole, read from its header and length alone; "" if it can."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError
            header = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{file} is no safetensors file, or its beginning is missing. Download it again."
    wanted, size = 8 + length + max(ends, default=0), file.stat().st_size
    return "" if size == wanted else f"{file} has {size:,} bytes of {wanted:,}: it is truncated. Download it again."


class _KeysDiffer(WeightsError):
    """The file is whole, but another network's."""


def _check(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise WeightsError unless both have the same keys and shapes; counts what differs and names the first."""
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in wanted]
    other = [key for key in wanted if key in found and found[key] != wanted[key]]
    reasons = []
    if missing:
        near = nearest(missing[0], unknown, n=1)
        hint = f"; the file has {near[0]}" if near else ""
        reasons.append(f"{len(missing)} of {len(wanted)} tensors are missing (first: {missing[0]}{hint})")
    if unknown:
        reasons.append(f"{len(unknown)} are not of this network (first: {unknown[0]})")
    if other:
        key = other[0]
        reasons.append(f"{len(other)} have another shape (first: {key} {found[key]}, not {wanted[key]})")
    if reasons:
        raise _KeysDiffer("; ".join(reasons) + ".")


def _copy(source: Path, final: Path) -> None:
    """Copy so that `final` is either the old file or the whole new one."""
    handle, temporary = tempfile.mkstemp(dir=final.parent, prefix=".import-")
    try:
        with os.fdopen(handle, "wb") as out, source.open("rb") as file:
            shutil.copyfileobj(file, out, length=1 << 20)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(final)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
