"""Read a weights file, and match its tensors with a network's by their key tree: names and shapes.

A file is safetensors, or a PyTorch file that loads with weights_only=True; nothing else is ever opened. It fits if it
has every tensor of the backbone, with the right shape and finite numbers, and no other. Envelopes ({"model": ...}) and
prefixes of wrappers (`module.`, `net.`) are taken off. Torch is imported only when tensors are read.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sousa_engine.backbones.spec import Variant
from sousa_engine.core.errors import WeightsError, nearest

if TYPE_CHECKING:
    from sousa_engine.backbones.waveforms import TakesWaveforms


class KeysDiffer(WeightsError):
    """The file is complete, but belongs to another network. share: part of the tensors of both that fit, 0 to 1."""

    share = 0.0


class NotFinite(WeightsError):
    """The file belongs to this network, but some of its numbers are NaN or infinite."""


def official_network(
    variant: Variant,
    family: ModuleType,
    file: str | Path | Mapping[str, Any],
    *,
    num_classes: int | None,
    seed: int,
) -> TakesWaveforms:
    """`backbones.load_official`: a network with all that a published file holds, including its head, in eval mode."""
    state: Mapping[str, Any] = file if isinstance(file, Mapping) else read(Path(file).expanduser())
    head_path = None if num_classes is None else variant.head_path
    if num_classes is None:
        num_classes = _classes_in(variant, family, state)
    module = family.networks().network(variant, num_classes, seed)
    try:
        load_official(module, state, family, head_path=head_path)
        _check_settings(state, family, variant)
    except (KeysDiffer, NotFinite) as error:
        named = "This state dict" if isinstance(file, Mapping) else file
        why = f"does not fit {variant.name}" if isinstance(error, KeysDiffer) else "cannot be used"
        raise WeightsError(f"{named} {why}: {error}") from None
    return module.eval()


def load_official(
    module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, *, head_path: str | None = None
) -> None:
    """Load a state dict in any naming scheme that `family` can read, from the file's envelope if it has one.

    head_path: a head to leave unchanged, whatever the file has for it; None loads the head as well. Raises WeightsError
    if tensors are missing, have another shape, or are unknown; the module is then unchanged.
    """
    found = _matched(module, state, family, head_path)
    check_finite(found)
    module.load_state_dict(found, strict=False)


def fitted(module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, variant: Variant) -> dict[str, Any]:
    """The tensors of a file for everything in the module but its head, by name and shape; their numbers are not read.

    Raises KeysDiffer if the file is not this backbone's.
    A BEATs file also names the settings that it was trained with, some of which no tensor's shape would show.
    """
    found = _matched(module, state, family, variant.head_path)
    _check_settings(state, family, variant)
    return found


def _check_settings(state: Mapping[str, Any], family: ModuleType, variant: Variant) -> None:
    """Raise KeysDiffer if a file names other settings than the variant's."""
    settings = next((level["cfg"] for level in _levels(state) if isinstance(level.get("cfg"), Mapping)), None)
    if settings is not None and hasattr(family, "cfg_differences"):
        others = family.cfg_differences(settings, variant.architecture)
        if others:
            raise KeysDiffer(f"its tensors fit, but it was trained with other settings: {'; '.join(others)}.")


def _matched(
    module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, head_path: str | None
) -> dict[str, Any]:
    """The state dict in current names, checked to have exactly the module's keys and shapes (except for the head)."""
    found, wanted = translated(module, state, family), module.state_dict()
    if head_path is not None:
        found = {key: value for key, value in found.items() if not key.startswith(f"{head_path}.")}
        wanted = {key: value for key, value in wanted.items() if not key.startswith(f"{head_path}.")}
    _check(
        {key: tuple(value.shape) for key, value in found.items()},
        {key: tuple(value.shape) for key, value in wanted.items()},
    )
    return found


def translated(module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType) -> dict[str, Any]:
    """The tensors of a checkpoint in current names, without the prefix of a wrapper if more of them fit without it.

    Raises WeightsError if they cannot be read as this family's.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    refusal, best, most = None, {}, 0
    for tensors in _without_prefixes(_tensors(state)):
        try:
            found = family.translate(tensors)
        except (ValueError, RuntimeError) as error:  # a known name on a tensor that cannot be split as expected
            refusal = refusal or error
            continue
        fit = sum(tuple(value.shape) == wanted.get(key) for key, value in found.items())
        if fit > most or not best:
            best, most = found, fit
    if refusal and not most:
        if isinstance(refusal, WeightsError):
            raise refusal
        raise KeysDiffer(f"its tensors cannot be read as {family.__name__.rpartition('.')[2]}'s ({refusal}).")
    return best


def check_finite(tensors: Mapping[str, Any]) -> None:
    """Raise NotFinite, with the name of the first tensor that contains NaN or infinite numbers in float32."""
    import torch

    bad = {}
    for key, value in tensors.items():
        if value.is_floating_point() and not value.is_meta and (count := int((~torch.isfinite(value.float())).sum())):
            bad[key] = f"{count:,} of the {value.numel():,} numbers in {key} {'is' if count == 1 else 'are'}"
    if bad:
        more = f" ({len(bad)} tensors contain such numbers)" if len(bad) > 1 else ""
        raise NotFinite(f"{next(iter(bad.values()))} NaN or infinite{more}. Download or export the file again.")


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors inside a checkpoint's envelopes, without the names that torch.compile and FSDP insert."""
    *_, inner = _levels(state)
    return {_INSERTED.sub("", str(key)): value for key, value in inner.items() if hasattr(value, "shape")}


_ENVELOPES = ("state_dict", "model_state_dict", "model")
_INSERTED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def _levels(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A checkpoint, then what is in its envelope, and so on to the tensors: under a usual key, or where most are."""
    yield state
    usual = [state[key] for key in _ENVELOPES if isinstance(state.get(key), Mapping)]
    if usual:
        yield from _levels(usual[0])
        return
    counted = sorted(((_count(value), i) for i, value in enumerate(state.values())), reverse=True)
    (most, at), (next_most, _) = [*counted, (0, 0), (0, 0)][:2]
    if most > max(2 * next_most, sum(hasattr(value, "shape") for value in state.values())):
        yield from _levels(list(state.values())[at])


def _count(value: Any) -> int:
    """The number of tensors inside a mapping's envelopes; 0 for anything else."""
    if not isinstance(value, Mapping):
        return 0
    *_, inner = _levels(value)
    return sum(hasattr(one, "shape") for one in inner.values())


def _without_prefixes(tensors: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tensors, then without the first part of the name that most of them share, and so on."""
    yield tensors
    firsts = Counter(key.partition(".")[0] for key in tensors if "." in key)
    if firsts and (first := firsts.most_common(1)[0])[1] > len(tensors) / 2:
        shorter = {key.removeprefix(f"{first[0]}."): value for key, value in tensors.items()}
        if len(shorter) == len(tensors):
            yield from _without_prefixes(shorter)


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
        if why := not_weights(path):
            raise WeightsError(why) from None
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(_refusal(path, code[1])) from None
        # PyTorch's message on a pickle advises to read it without that protection, so it is not quoted.
        unsafe = isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)
        why = "PyTorch cannot read it safely" if unsafe else (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} is truncated or not a weights file ({why}). Download it again.") from None
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path} holds a {type(found).__name__}, not a state dict.")
    return dict(found)


def not_weights(path: Path) -> str:
    """Why a file cannot be a PyTorch file, by its first bytes alone; "" if it may be one, or is safetensors."""
    head = _begins(path)
    if path.suffix == ".safetensors" or head.startswith((b"PK", b"\x80")):
        return ""
    if head.lstrip().startswith(b"<"):
        return f"{path} is a web page, not the weights file. Download the file in a browser, by the link on that page."
    held = "holds text" if head and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head) else "is something else"
    return f"{path} is not a weights file: it {held if head else 'is empty'}. Choose a PyTorch or safetensors file."


def _refusal(path: Path, code: str) -> str:
    """Why a file that could run `code` is not read, and how to convert it."""
    source, made = (json.dumps(str(p), ensure_ascii=False) for p in (path, path.with_suffix(".safetensors")))
    recipe = (
        f"import torch; from safetensors.torch import save_file; "
        f'd = torch.load({source}, map_location="cpu", weights_only=False); '
        f'save_file({{k: v.clone() for k, v in d.get("state_dict", d).items() if torch.is_tensor(v)}}, {made})'
    )
    return (
        f"{path} holds more than tensors ({code}); it is refused, because reading it could run "
        f"code. If you trust its source, convert it in an isolated environment, and use the new file: "
        f"python -c {shlex.quote(recipe)}"
    )


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _classes_in(variant: Variant, family: ModuleType, state: Mapping[str, Any]) -> int:
    """Number of classes of the head in a file: the size that differs between heads for 2 and for 3 classes."""
    network = blank(variant, family, 2)
    found = translated(network, state, family)
    two, three = network.state_dict(), blank(variant, family, 3).state_dict()
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
        differ.share = (len(wanted) - len(missing) - len(other)) / (len(wanted) + len(unknown))
        raise differ
