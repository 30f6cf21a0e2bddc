"""Weights of backbones: where they are, what they are, and loading them. Imports torch only where tensors are read.

A file is safetensors, or a PyTorch file that loads with weights_only=True; nothing else is ever opened. A file is
accepted by its key tree: every tensor of the backbone, of the right shape, and no other. Nothing falls back silently.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sousa_engine import run_files
from sousa_engine.backbones import downloads, embedded, intake
from sousa_engine.backbones.downloads import sha256
from sousa_engine.backbones.spec import Variant, WeightsState
from sousa_engine.errors import WeightsError, nearest
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    from sousa_engine.backbones.waveforms import TakesWaveforms

EMBEDDED = embedded.FOLDER
FILE_NAMES = ("model.safetensors", "model.pth", "pytorch_model.bin")  # looked for in a folder, in this order
ORIGIN = "origin.json"  # beside an imported file: its own name, where it came from, its sha256


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A weights file on this machine.

    origin: "embedded", "imported from ...", "downloaded from ...", "hub cache" or "put there by hand". recorded: its
    sha256 when it was taken in, or as published; None where nobody wrote it down.
    """

    path: Path
    origin: str
    size_bytes: int
    recorded: str | None

    @property
    def is_published(self) -> bool:
        """Whether it is the file that `fetch` would bring."""
        return self.origin == "hub cache" or self.origin.startswith("downloaded")


def weights_state(variant: Variant, workspace: Workspace, weights: str = "pretrained") -> WeightsState:
    """What `build` would load for `weights` (pretrained, random, or a path), or a sentence that names the ways out.

    Looks, in this order: in the package, in the workspace, in the Hugging Face cache of this machine, on the network.
    """
    if weights == "random":
        return WeightsState(available=True, label="random weights", path=None, message="")
    if weights != "pretrained":
        state = _file_state(Path(weights).expanduser())
        hint = (
            "" if state.available else " Set model.weights to a weights file or a folder, to pretrained or to random."
        )
        return replace(state, message=state.message + hint)
    here = stored(variant, workspace)
    if here is not None:
        named = here.origin in ("embedded", "hub cache")
        return _file_state(here.path, name=f"{variant.name} ({here.origin})" if named else _own_name(here.path))
    if variant.download and variant.download.url:
        why = downloads.unreachable(variant.download.url)
        if not why:
            label = f"pretrained: {variant.download.file}, downloaded when the run starts"
            return WeightsState(available=True, label=label, path=None, message="")
    else:
        why = "they have no direct link"
    return WeightsState(available=False, label="", path=None, message=ways_out(variant, workspace, why))


def stored(variant: Variant, workspace: Workspace) -> Stored | None:
    """The file that "pretrained" means on this machine, if there is one; never asks the network."""
    packed = _file_in(EMBEDDED / variant.name)
    if packed is not None:
        card = json.loads((packed.parent / "config.json").read_text())
        return Stored(path=packed, origin="embedded", size_bytes=packed.stat().st_size, recorded=card["sha256"])
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


def intake_folder(variant: Variant, workspace: Workspace) -> Path:
    """Where a variant's download or import is under way: intake.look tells how far it is."""
    return workspace.weights / ".intake" / variant.name


def fetch(
    variant: Variant,
    family: ModuleType,
    workspace: Workspace,
    *,
    tell: intake.Tell | None = None,
    lock_fd: int | None = None,
) -> WeightsState:
    """Download a variant's published weights into the workspace, once they are seen to fit. Raises WeightsError.

    If they are here and whole, nothing is asked of the network. Of several callers at once one downloads, the others
    wait for it. tell, lock_fd: see intake.taking_in.
    """
    folder = intake_folder(variant, workspace)
    with _writing(folder), intake.taking_in(folder, lock_fd=lock_fd, tell=tell) as tell:
        if variant.download is None:
            raise WeightsError(f"{variant.name} needs no download: its weights are part of this package.")
        here = stored(variant, workspace)
        if here and here.is_published and here.recorded in (None, sha256(here.path)):
            return weights_state(variant, workspace)
        file = downloads.fetch(variant.download, folder, lambda done, total: tell("downloading", done, total))
        tell("checking", 0, None)
        try:
            _check_fits(file, variant, family)
        except WeightsError as error:
            file.unlink()
            raise WeightsError(f"{error} It is not kept.") from None
        return _put(variant, file, workspace, came=f"downloaded from {variant.download.url}", move=True)


def import_weights(
    variant: Variant,
    family: ModuleType,
    file: Path,
    workspace: Workspace,
    *,
    known: Sequence[Variant] = (),
    tell: intake.Tell | None = None,
    lock_fd: int | None = None,
) -> WeightsState:
    """Copy a file (or a folder's file) into the workspace, once its key tree is seen to be this backbone's.

    known: a file that is the published one of another of these, by its sha256, is refused although it would fit. tell,
    lock_fd: see intake.taking_in.
    """
    folder = intake_folder(variant, workspace)
    with _writing(folder), intake.taking_in(folder, lock_fd=lock_fd, tell=tell) as tell:
        tell("checking", 0, None)
        here = stored(variant, workspace)
        if here and here.origin == "embedded":
            raise WeightsError(
                f"{variant.name} has its weights in this package, and an imported file would never be used. To train "
                f"from {file}, set model.weights to it."
            )
        path = _file(file)
        for other in known:
            published = other.download.sha256 if other.download else None
            if published and other.name != variant.name and sha256(path) == published:
                raise WeightsError(f"{path} is the published file of {other.name}, by its sha256, not {variant.name}.")
        _check_fits(path, variant, family)
        return _put(variant, path, workspace, came=f"imported from {path.resolve()}", move=False)


def recognise(file: Path, choices: Sequence[tuple[Variant, ModuleType]]) -> list[Variant]:
    """The variants whose key tree a file has; raises WeightsError, naming the nearest, if it is none of theirs.

    Of several, those whose published sha256 it has, or else those whose head it has too, whatever its classes.
    """
    path = _file(file)
    tensors = read(path)
    fits, with_head, closest = [], [], (float("inf"), "")
    for variant, family in choices:
        blank = _blank(variant, family)
        try:
            _fitted(blank, tensors, family, variant)
        except WeightsError as error:
            closest = min(closest, (getattr(error, "differing", 10**9), f"{variant.name}: {error}"))
            continue
        fits.append(variant)
        if family.translate(unwrap(tensors)).keys() == blank.state_dict().keys():
            with_head.append(variant)
    if not fits:
        raise WeightsError(f"{path} is of no backbone known here. Nearest is {closest[1]}")
    published = {v.download.sha256: v for v in fits if v.download and v.download.sha256}
    if len(fits) > 1 and published and (exact := published.get(sha256(path))):
        return [exact]
    return with_head or fits


def verify(variant: Variant, family: ModuleType, here: Stored) -> str:
    """ "" if a stored file is what was taken in and fits its backbone; else a sentence."""
    if here.recorded and (found := sha256(here.path)) != here.recorded:
        return f"{here.path} has changed: sha256 {found[:12]}..., taken in as {here.recorded[:12]}..."
    try:
        _check_fits(_file(here.path), variant, family)
    except WeightsError as error:
        return str(error)
    return ""


def load_pretrained(
    module: TakesWaveforms,
    variant: Variant,
    family: ModuleType,
    state: WeightsState,
    workspace: Workspace,
    tell: intake.Tell | None = None,
) -> str:
    """Load what `weights_state` found into all of `module` but its head; returns the label to record.

    tell: hears of a download, if there has to be one, and ends it by raising.

    Raises WeightsError if there is nothing to load, or if it is not this backbone's; then the module is unchanged.
    """
    if not state.available:
        raise WeightsError(state.message)
    if state.path is None:
        state = fetch(variant, family, workspace, tell=tell)
    assert state.path is not None
    try:
        module.load_state_dict(_fitted(module, read(state.path), family, variant), strict=False)
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


def _fitted(module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, variant: Variant) -> dict[str, Any]:
    """What of a file goes into all of the module but its head; raises _KeysDiffer if it is not this backbone's.

    A BEATs file says with which settings it was trained, some of which no tensor's shape would show.
    """
    found = _matched(module, state, family, variant.head_path)
    settings = state.get("cfg")
    if isinstance(settings, Mapping) and hasattr(family, "cfg_differences"):
        others = family.cfg_differences(settings, variant.architecture)
        if others:
            raise _KeysDiffer(f"its tensors would fit, but it was trained with other settings: {'; '.join(others)}.")
    return found


def _matched(
    module: TakesWaveforms, state: Mapping[str, Any], family: ModuleType, head_path: str | None
) -> dict[str, Any]:
    """The state dict in today's names, seen to have exactly the module's keys and shapes (but for the head)."""
    tensors, wanted = unwrap(state), module.state_dict()
    try:
        found = family.translate(tensors)
    except (ValueError, RuntimeError) as error:  # a known name on a tensor that cannot be split as it should be
        if isinstance(error, WeightsError):
            raise
        raise _KeysDiffer(
            f"its tensors cannot be read in {family.__name__.rpartition('.')[2]}'s way ({error})."
        ) from None
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


def read(path: Path) -> dict[str, Any]:
    """All tensors of a file, on the CPU. Raises WeightsError for a file that is truncated or no weights file."""
    import pickle

    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # on bytes that are no weights, torch's reader stumbles over anything
        if isinstance(error, pickle.UnpicklingError) and _begins(path).startswith((b"PK", b"\x80")):
            raise WeightsError(_refusal(path, error)) from None
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(_no_weights(path, first)) from None
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path} holds a {type(found).__name__}, not a state dict.")
    return dict(found)


def _refusal(path: Path, error: Exception) -> str:
    """Why a file that would run code is not read, and how to make one that can be."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    source, made = (json.dumps(str(p), ensure_ascii=False) for p in (path, path.with_suffix(".safetensors")))
    recipe = (
        f"import torch; from safetensors.torch import save_file; "
        f'd = torch.load({source}, map_location="cpu", weights_only=False); '
        f'save_file({{k: v.clone() for k, v in d.get("state_dict", d).items() if torch.is_tensor(v)}}, {made})'
    )
    return (
        f"{path} holds more than tensors{f' ({code[1]})' if code else ''}; it is refused, because reading it could run "
        f"code. If you trust where it comes from, convert it in an environment that you trust it with, and take the "
        f"new file: python -c {shlex.quote(recipe)}"
    )


def _no_weights(path: Path, why: str) -> str:
    if _begins(path).lstrip().startswith(b"<"):
        return f"{path} is a web page, not the weights file: download it with a browser, by the link on its page."
    return f"{path} is truncated or no weights file ({why}). Download it again."


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


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


def _check_fits(file: Path, variant: Variant, family: ModuleType) -> None:
    try:
        _fitted(_blank(variant, family), read(file), family, variant)
    except _KeysDiffer as error:
        raise WeightsError(f"{file} does not fit {variant.name}: {error}") from None


def _put(variant: Variant, file: Path, workspace: Workspace, *, came: str, move: bool) -> WeightsState:
    """Move or copy a file that fits into its place in the workspace."""
    folder = workspace.weights / variant.name
    final = folder / ("model.safetensors" if file.suffix == ".safetensors" else "model.pth")
    new = file if move else folder / f".import-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not move:
            _copy(file, new)
        facts = {"file": file.name, "from": came, "sha256": sha256(new), "at": time.strftime("%Y-%m-%d %H:%M:%S")}
        # A crash between two of these lines leaves weights of unknown origin, never of a wrong one.
        (folder / ORIGIN).unlink(missing_ok=True)
        new.replace(final)
        for other in FILE_NAMES:
            if other != final.name:
                (folder / other).unlink(missing_ok=True)
        run_files.write_json(folder / ORIGIN, facts)
    except OSError as error:
        raise WeightsError(f"{file.name} could not be put into {folder}: {error.strerror or error}.") from None
    finally:
        if not move:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)  # where it did not become `final`
    return weights_state(variant, workspace)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{folder} cannot be written to: {error.strerror or error}.") from None


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


def ways_out(variant: Variant, workspace: Workspace, why: str) -> str:
    """That there are no weights, why none can be downloaded, and everything one can do about it."""
    folder, found = workspace.weights / variant.name, variant.download
    if found is None:
        return (
            f"The embedded weights of {variant.name} are missing from {EMBEDDED / variant.name}: restore the file, "
            f"or set model.weights to a file, or to random."
        )
    own_mini = f"{variant.family}-mini"
    mini = own_mini if (EMBEDDED / own_mini).is_dir() else "ast-mini"
    return (
        f"No weights for {variant.name}: none were imported, and {why}. Ways out: get {found.file} from {found.page}, "
        f"and import it (python -m sousa_engine weights import FILE), or name it (model.weights=FILE), or put it into "
        f"{folder}; another backbone (model={mini}: its weights are embedded); "
        f"or random weights, a control (model.weights=random)."
    )


def _origin(file: Path) -> dict[str, str]:
    return run_files.read_json(file.parent / ORIGIN) or {}


def _own_name(file: Path) -> str:
    return _origin(file).get("file", file.name)


def _file_state(path: Path, name: str = "") -> WeightsState:
    """State of a file or of the weights file in a folder; a safetensors file is checked for being whole."""
    file = _file_in(path) if path.is_dir() else path
    problem = ""
    if file is None:
        problem = f"{path} holds no weights file. It needs one of: {', '.join(FILE_NAMES)}."
    elif not file.is_file():
        problem = f"There is no file {file}."
    elif file.suffix == ".safetensors":
        problem = _broken(file)
    label = f"pretrained: {name or file.name}" if file else ""
    return WeightsState(available=not problem, label="" if problem else label, path=file, message=problem)


def _file(path: Path) -> Path:
    """The weights file that a user names; raises WeightsError if there is none, or half a one."""
    state = _file_state(path.expanduser())
    if not state.available:
        raise WeightsError(state.message)
    assert state.path is not None
    return state.path


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
        wanted, size = 8 + length + max(ends, default=0), file.stat().st_size
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, OSError):
        return f"{file} is no safetensors file, or its beginning is missing. Download it again."
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


def _copy(source: Path, copy: Path) -> None:
    """Copy, and see that it is on the disk."""
    with source.open("rb") as file, copy.open("wb") as out:
        shutil.copyfileobj(file, out, length=1 << 20)
        out.flush()
        os.fsync(out.fileno())
