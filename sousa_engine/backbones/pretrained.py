"""Weights of backbones: where they are, what they are, and loading them. Imports torch only where tensors are read.

A file is safetensors, or a PyTorch file that loads with weights_only=True; nothing else is ever opened. A file is
accepted by its key tree: every tensor of the backbone, of the right shape, and no other. Nothing falls back silently.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sousa_engine.backbones import downloads
from sousa_engine.backbones.downloads import sha256
from sousa_engine.backbones.spec import Variant, WeightsState
from sousa_engine.errors import WeightsError, nearest
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from sousa_engine.backbones.waveforms import TakesWaveforms

EMBEDDED = Path(__file__).parent / "weights"
FILE_NAMES = ("model.safetensors", "model.pth", "pytorch_model.bin")  # looked for in a folder, in this order
ORIGIN = "origin.json"  # beside an imported file: its own name, where it came from, its sha256


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A weights file on this machine. origin: "embedded", "imported from ...", "downloaded from ...", "hub cache".

    recorded: its sha256 when it was taken in, None where nobody wrote it down.
    """

    path: Path
    origin: str
    size_bytes: int
    recorded: str | None


def weights_state(variant: Variant, workspace: Workspace, weights: str = "pretrained") -> WeightsState:
    """What `build` would load for `weights` (pretrained, random, or a path), or a sentence that names the ways out.

    Looks, in this order: in the package, in the workspace, in the Hugging Face cache of this machine, on the network.
    """
    if weights == "random":
        return WeightsState(available=True, label="random weights", path=None, message="")
    if weights != "pretrained":
        return _file_state(Path(weights).expanduser())
    here = stored(variant, workspace)
    if here is not None:
        named = here.origin in ("embedded", "hub cache")
        return _file_state(here.path, name=f"{variant.name} ({here.origin})" if named else _own_name(here.path))
    if variant.download and variant.download.url and downloads.answers(variant.download.url):
        label = f"pretrained: {variant.download.file}, downloaded when the run starts"
        return WeightsState(available=True, label=label, path=None, message="")
    return WeightsState(available=False, label="", path=None, message=ways_out(variant, workspace))


def stored(variant: Variant, workspace: Workspace) -> Stored | None:
    """The file that "pretrained" means on this machine, if there is one; never asks the network."""
    embedded = _file_in(EMBEDDED / variant.name)
    if embedded is not None:
        card = json.loads((embedded.parent / "config.json").read_text())
        return Stored(path=embedded, origin="embedded", size_bytes=embedded.stat().st_size, recorded=card["sha256"])
    own = _file_in(workspace.weights / variant.name)
    if own is not None:
        facts = _origin(own)
        return Stored(
            path=own,
            origin=facts.get("from", "put there by hand"),
            size_bytes=own.stat().st_size,
            recorded=facts.get("sha256"),
        )
    cached = _cached(variant)
    if cached is not None:
        assert variant.download is not None
        return Stored(
            path=cached, origin="hub cache", size_bytes=cached.stat().st_size, recorded=variant.download.sha256
        )
    return None


def fetch(
    variant: Variant, family: ModuleType, workspace: Workspace, progress: downloads.Progress | None = None
) -> WeightsState:
    """Download a variant's published weights into the workspace, once they are seen to fit. Raises WeightsError."""
    if variant.download is None:
        raise WeightsError(f"{variant.name} needs no download: its weights are part of this package.")
    waiting = workspace.weights / variant.name / ".download"
    try:
        file = downloads.fetch(variant.download, waiting, progress)
        state = _take(variant, family, file, workspace, came=f"downloaded from {variant.download.url}", move=True)
    except OSError as error:
        raise WeightsError(f"{waiting} cannot be written to ({error.strerror}).") from None
    shutil.rmtree(waiting, ignore_errors=True)
    return state


def import_weights(variant: Variant, family: ModuleType, file: Path, workspace: Workspace) -> WeightsState:
    """Copy a file (or a folder's file) into the workspace, once its key tree is seen to be this backbone's."""
    state = _file_state(file.expanduser())
    if not state.available:
        raise WeightsError(state.message)
    assert state.path is not None
    return _take(variant, family, state.path, workspace, came=f"imported from {state.path.resolve()}", move=False)


def recognise(file: Path, choices: Sequence[tuple[Variant, ModuleType]]) -> list[Variant]:
    """The variants whose key tree a file has; raises WeightsError, naming the nearest, if it is none of theirs."""
    state = _file_state(file.expanduser())
    if not state.available:
        raise WeightsError(state.message)
    assert state.path is not None
    tensors = read(state.path)
    fits, closest = [], (float("inf"), "")
    for variant, family in choices:
        try:
            _matched(_blank(variant, family), tensors, family, variant.head_path)
            fits.append(variant)
        except _KeysDiffer as error:
            closest = min(closest, (error.differing, f"{variant.name}: {error}"))
    if not fits:
        raise WeightsError(f"{state.path} is of no backbone known here. Nearest is {closest[1]}")
    known = [v for v in fits if v.download and v.download.sha256]
    if len(fits) > 1 and known:  # one key tree, several trainings
        digest = sha256(state.path)
        fits = [v for v in known if v.download and v.download.sha256 == digest] or fits
    return fits


def verify(variant: Variant, family: ModuleType, here: Stored) -> str:
    """ "" if a stored file is what was taken in and fits its backbone; else a sentence."""
    if here.recorded and (found := sha256(here.path)) != here.recorded:
        return f"{here.path} has changed: sha256 {found[:12]}, taken in as {here.recorded[:12]}."
    try:
        _matched(_blank(variant, family), read(here.path), family, variant.head_path)
    except WeightsError as error:
        return f"{here.path} does not fit {variant.name}: {error}"
    return ""


def load_pretrained(
    module: TakesWaveforms, variant: Variant, family: ModuleType, state: WeightsState, workspace: Workspace
) -> str:
    """Load what `weights_state` found into all of `module` but its head; returns the label to record.

    Raises WeightsError if there is nothing to load, or if it is not this backbone's; then the module is unchanged.
    """
    if not state.available:
        raise WeightsError(state.message)
    if state.path is None:
        state = fetch(variant, family, workspace)
    assert state.path is not None
    try:
        module.load_state_dict(_matched(module, read(state.path), family, variant.head_path), strict=False)
    except _KeysDiffer as error:
        raise WeightsError(f"{state.path} does not fit {variant.name}: {error}") from None
    return f"{state.label}, sha256 {sha256(state.path)[:12]}"


def official_network(
    variant: Variant,
    family: ModuleType,
    file: str | Path | Mapping[str, Any],
    *,
    num_classes: int | None,
    seed: int,
) -> TakesWaveforms:
    """`backbones.load_official`: a network with all that a published file holds, its head too, in eval mode."""
    state: Mapping[str, Any] = file if isinstance(file, Mapping) else read(Path(file).expanduser())
    head_path = None if num_classes is None else variant.head_path
    if num_classes is None:
        num_classes = _classes_in(variant, family, state)
    module = family.networks().network(variant, num_classes, seed)
    try:
        load_official(module, state, family, head_path=head_path)
    except _KeysDiffer as error:
        named = "This state dict" if isinstance(file, Mapping) else file
        raise WeightsError(f"{named} does not fit {variant.name}: {error}") from None
    return module.eval()


def load_official(
    module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, *, head_path: str | None = None
) -> None:
    """Load a state dict in any naming that `family` can read, from the file's envelope if it has one.

    head_path: a head that stays as it is, whatever the file has for it; None loads the head as well. Raises
    WeightsError if tensors are missing, of another shape, or unknown; the module is then unchanged.
    """
    module.load_state_dict(_matched(module, state, family, head_path), strict=False)


def _matched(
    module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, head_path: str | None
) -> dict[str, Any]:
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


def _classes_in(variant: Variant, family: ModuleType, state: Mapping[str, Any]) -> int:
    """How many classes the head in a file tells apart: the size that differs between heads for 2 and for 3."""
    found = family.translate(unwrap(state))
    two, three = _blank(variant, family, 2).state_dict(), _blank(variant, family, 3).state_dict()
    for key, value in two.items():
        for axis, (size, more) in enumerate(zip(value.shape, three[key].shape, strict=True)):
            if size != more and key in found and len(found[key].shape) == value.ndim:
                return int(found[key].shape[axis])
    raise WeightsError(
        f"There is no head for {variant.name} in this file ({variant.head_path}.*). Give num_classes to get a new one."
    )


def _take(
    variant: Variant, family: ModuleType, file: Path, workspace: Workspace, *, came: str, move: bool
) -> WeightsState:
    """Put a file in its place in the workspace, once it is seen to fit."""
    try:
        _matched(_blank(variant, family), read(file), family, variant.head_path)
    except _KeysDiffer as error:
        raise WeightsError(f"{file} does not fit {variant.name}: {error}") from None
    folder = workspace.weights / variant.name
    final = folder / ("model.safetensors" if file.suffix == ".safetensors" else "model.pth")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"file": file.name, "from": came, "sha256": sha256(file), "at": time.strftime("%Y-%m-%d %H:%M:%S")}
        if move:
            file.replace(final)
        else:
            _copy(file, final)
        (folder / ORIGIN).write_text(json.dumps(facts, indent=1) + "\n")
    except OSError as error:
        raise WeightsError(f"{file} could not be copied to {folder}: {error.strerror}.") from None
    for name in FILE_NAMES:
        if name != final.name:
            (folder / name).unlink(missing_ok=True)
    return weights_state(variant, workspace)


def _blank(variant: Variant, family: ModuleType, num_classes: int = 2) -> TakesWaveforms:
    """The network without memory for its weights."""
    import torch

    with torch.device("meta"):
        return family.networks().network(variant, num_classes, 0)


def _cached(variant: Variant) -> Path | None:
    """The file in the Hugging Face cache of this machine, if it was downloaded before; never asks the network."""
    url = variant.download.url if variant.download else None
    on_hub = re.fullmatch(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/main/(.+)", url or "")
    if not on_hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(on_hub[1], on_hub[2])
    return Path(found) if isinstance(found, str) else None


def ways_out(variant: Variant, workspace: Workspace) -> str:
    """Why there are no weights, and everything one can do about it."""
    folder = workspace.weights / variant.name
    if variant.download is None:
        return (
            f"The embedded weights of {variant.name} are missing from {EMBEDDED / variant.name}: restore the file, "
            f"or set model.weights to a file, or to random."
        )
    found = variant.download
    why = f"{downloads.host(found.url)} does not answer" if found.url else "they have no direct link"
    return (
        f"No weights for {variant.name}: none were imported, and {why}. Ways out: a weights file "
        f"(model.weights=FILE: {found.file} of {found.page}), which may also lie in {folder}; "
        f"another backbone (model={variant.family}-mini: its weights are embedded); "
        f"or random weights, a control (model.weights=random)."
    )


def _origin(file: Path) -> dict[str, str]:
    try:
        return json.loads((file.parent / ORIGIN).read_text())
    except (OSError, ValueError):
        return {}


def _own_name(file: Path) -> str:
    return _origin(file).get("file", file.name)


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
    """The file is whole, but another network's. differing: how many tensors are."""

    differing = 0


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
        differ = _KeysDiffer("; ".join(reasons) + ".")
        differ.differing = len(missing) + len(unknown) + len(other)
        raise differ


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
