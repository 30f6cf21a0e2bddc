"""Read a weights file, and match its tensors with a network's by their key tree: names and shapes.

A file is safetensors, or a PyTorch file that loads with weights_only=True; nothing else is ever opened. It fits if it
has every tensor of the backbone, with the right shape, and no other. Torch is imported only when tensors are read.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sousa_engine.backbones.spec import Variant
from sousa_engine.core import inputs
from sousa_engine.core.errors import WeightsError, nearest

if TYPE_CHECKING:
    from sousa_engine.backbones.waveforms import TakesWaveforms


class KeysDiffer(WeightsError):
    """The file is complete, but belongs to another network. differing: number of tensors that differ."""

    differing = 0


def official_network(
    variant: Variant,
    family: ModuleType,
    file: str | Path | Mapping[str, Any],
    *,
    num_classes: int | None,
    seed: int,
) -> TakesWaveforms:
    """`backbones.load_official`: a network with all that a published file holds, including its head, in eval mode."""
    state: Mapping[str, Any] = file if isinstance(file, Mapping) else read(inputs.typed_path(file, WeightsError))
    head_path = None if num_classes is None else variant.head_path
    if num_classes is None:
        num_classes = _classes_in(variant, family, state)
    module = family.networks().network(variant, num_classes, seed)
    try:
        load_official(module, state, family, head_path=head_path)
        _check_settings(state, family, variant)
    except KeysDiffer as error:
        named = "This state dict" if isinstance(file, Mapping) else file
        raise WeightsError(f"{named} does not fit {variant.name}: {error}") from None
    return module.eval()


def load_official(
    module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, *, head_path: str | None = None
) -> None:
    """Load a state dict in any naming scheme that `family` can read, from the file's envelope if it has one.

    head_path: a head to leave unchanged, whatever the file has for it; None loads the head as well. Raises WeightsError
    if tensors are missing, have another shape, or are unknown; the module is then unchanged.
    """
    module.load_state_dict(_matched(module, state, family, head_path), strict=False)


def fitted(module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, variant: Variant) -> dict[str, Any]:
    """The tensors of a file for everything in the module but its head. Raises KeysDiffer if it is not this backbone's.

    A BEATs file also names the settings that it was trained with, some of which no tensor's shape would show.
    """
    found = _matched(module, state, family, variant.head_path)
    _check_settings(state, family, variant)
    return found


def _check_settings(state: Mapping[str, Any], family: ModuleType, variant: Variant) -> None:
    """Raise KeysDiffer if a file names other settings than the variant's."""
    settings = state.get("cfg")
    if isinstance(settings, Mapping) and hasattr(family, "cfg_differences"):
        others = family.cfg_differences(settings, variant.architecture)
        if others:
            raise KeysDiffer(f"its tensors fit, but it was trained with other settings: {'; '.join(others)}.")


def _matched(
    module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, head_path: str | None
) -> dict[str, Any]:
    """The state dict in current names, checked to have exactly the module's keys and shapes (except for the head)."""
    tensors, wanted = unwrap(state), module.state_dict()
    try:
        found = family.translate(tensors)
    except (ValueError, RuntimeError) as error:  # a known name on a tensor that cannot be split as expected
        if isinstance(error, WeightsError):
            raise
        raise KeysDiffer(f"its tensors cannot be read as {family.__name__.rpartition('.')[2]}'s ({error}).") from None
    if head_path is not None:
        found = {key: value for key, value in found.items() if not key.startswith(f"{head_path}.")}
        wanted = {key: value for key, value in wanted.items() if not key.startswith(f"{head_path}.")}
    _check(
        {key: tuple(value.shape) for key, value in found.items()},
        {key: tuple(value.shape) for key, value in wanted.items()},
    )
    return found


def unwrap(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a checkpoint: from {"state_dict": ...} or {"model": ...}, without DataParallel's `module.`."""
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), Mapping):
            return unwrap(state[key])
    tensors = {str(key): value for key, value in state.items() if hasattr(value, "shape")}
    if tensors and all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def read(path: Path) -> dict[str, Any]:
    """All tensors of a file, on the CPU. Raises WeightsError if it is truncated or not a weights file."""
    import pickle

    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # on other bytes, torch's reader may raise anything
        if isinstance(error, pickle.UnpicklingError) and _begins(path).startswith((b"PK", b"\x80")):
            raise WeightsError(_refusal(path, error)) from None
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(_no_weights(path, first)) from None
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path} holds a {type(found).__name__}, not a state dict.")
    return dict(found)


def _refusal(path: Path, error: Exception) -> str:
    """Why a file that could run code is not read, and how to convert it."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    source, made = (json.dumps(str(p), ensure_ascii=False) for p in (path, path.with_suffix(".safetensors")))
    recipe = (
        f"import torch; from safetensors.torch import save_file; "
        f'd = torch.load({source}, map_location="cpu", weights_only=False); '
        f'save_file({{k: v.clone() for k, v in d.get("state_dict", d).items() if torch.is_tensor(v)}}, {made})'
    )
    return (
        f"{path} holds more than tensors{f' ({code[1]})' if code else ''}; it is refused, because reading it could run "
        f"code. If you trust its source, convert it in an isolated environment, and use the new file: "
        f"python -c {shlex.quote(recipe)}"
    )


def _no_weights(path: Path, why: str) -> str:
    if _begins(path).lstrip().startswith(b"<"):
        return f"{path} is a web page, not the weights file. Download the file in a browser, by the link on that page."
    return f"{path} is truncated or not a weights file ({why}). Download it again."


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _classes_in(variant: Variant, family: ModuleType, state: Mapping[str, Any]) -> int:
    """Number of classes of the head in a file: the size that differs between heads for 2 and for 3 classes."""
    found = family.translate(unwrap(state))
    two, three = blank(variant, family, 2).state_dict(), blank(variant, family, 3).state_dict()
    for key, value in two.items():
        for axis, (size, more) in enumerate(zip(value.shape, three[key].shape, strict=True)):
            if size != more and key in found and len(found[key].shape) == value.ndim:
                return int(found[key].shape[axis])
    raise WeightsError(
        f"This file has no head for {variant.name} ({variant.head_path}.*). Pass num_classes to get a new one."
    )


def blank(variant: Variant, family: ModuleType, num_classes: int = 2) -> TakesWaveforms:
    """The network without memory for its weights."""
    import torch

    with torch.device("meta"):
        return family.networks().network(variant, num_classes, 0)


def _check(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise KeysDiffer unless both have the same keys and shapes, with the number of differences and the first one."""
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in wanted]
    other = [key for key in wanted if key in found and found[key] != wanted[key]]
    reasons = []
    if missing:
        near = nearest(missing[0], unknown, n=1)
        hint = f"; the file has {near[0]}" if near else ""
        reasons.append(f"{len(missing)} of {len(wanted)} tensors are missing (first: {missing[0]}{hint})")
    if unknown:
        reasons.append(f"{len(unknown)} do not belong to this network (first: {unknown[0]})")
    if other:
        key = other[0]
        reasons.append(f"{len(other)} have another shape (first: {key} {found[key]}, not {wanted[key]})")
    if reasons:
        differ = KeysDiffer("; ".join(reasons) + ".")
        differ.differing = len(missing) + len(unknown) + len(other)
        raise differ
