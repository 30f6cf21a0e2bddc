"""Weights of backbones: find, download, import, verify and load them. Imports torch only when tensors are read.

A file is accepted if its key tree fits (key_tree.py). There are no silent fallbacks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sousa_engine.backbones import downloads, embedded, key_tree
from sousa_engine.backbones.downloads import sha256
from sousa_engine.backbones.spec import Variant, WeightsState
from sousa_engine.core import inputs
from sousa_engine.core.errors import WeightsError
from sousa_engine.workspace import Workspace, intake, run_files

if TYPE_CHECKING:
    from sousa_engine.backbones.waveforms import TakesWaveforms

EMBEDDED = embedded.FOLDER
FILE_NAMES = ("model.safetensors", "model.pth", "pytorch_model.bin")  # looked for in a folder, in this order
MOST_HEADER_BYTES = 16 * 2**20  # of a safetensors file; that of a known backbone has some 50,000
ORIGIN = "origin.json"  # next to an imported file: its original name, its source, its sha256


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A weights file on this machine.

    origin: "embedded", "imported from ...", "downloaded from ...", "hub cache" or "put there by hand". recorded: its
    sha256 when it was installed, or as published; None if it is unknown.
    """

    path: Path
    origin: str
    size_bytes: int
    recorded: str | None

    @property
    def is_published(self) -> bool:
        """Whether it is the file that `fetch` would download."""
        return self.origin == "hub cache" or self.origin.startswith("downloaded")


def weights_state(variant: Variant, workspace: Workspace, weights: str = "pretrained") -> WeightsState:
    """The weights that `build` loads for `weights` (pretrained, random or a path), or a sentence with the options.

    Looks in this order: the package, the workspace, this machine's Hugging Face cache, the network.
    """
    if weights == "random":
        return WeightsState(available=True, label="random weights", path=None, message="")
    if weights != "pretrained":
        state = _file_state(inputs.typed_path(weights, WeightsError))
        hint = "" if state.available else " Set model.weights to a weights file, a folder, pretrained or random."
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
        why = "there is no direct link"
    return WeightsState(available=False, label="", path=None, message=options(variant, workspace, why))


def stored(variant: Variant, workspace: Workspace) -> Stored | None:
    """The file that "pretrained" means on this machine, if there is one; never uses the network."""
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
    """The folder of a variant's running download or import; intake.look reads its progress."""
    return workspace.weights / ".intake" / variant.name


def fetch(
    variant: Variant,
    family: ModuleType,
    workspace: Workspace,
    *,
    tell: intake.Tell | None = None,
    lock_fd: int | None = None,
) -> WeightsState:
    """Download a variant's published weights into the workspace, if they fit. Raises WeightsError.

    If they are already installed and complete, the network is not used. Of several callers at once, one downloads and
    the others wait for it. tell, lock_fd: see intake.taking_in.
    """
    folder = intake_folder(variant, workspace)
    with _writing(folder), intake.taking_in(folder, lock_fd=lock_fd, tell=tell) as tell:
        if variant.download is None:
            raise WeightsError(f"{variant.name} needs no download: its weights come with this package.")
        here = stored(variant, workspace)
        if here and here.is_published and here.recorded in (None, sha256(here.path)):
            return weights_state(variant, workspace)
        file = downloads.fetch(variant.download, folder, lambda done, total: tell("downloading", done, total))
        tell("checking", 0, None)
        try:
            check_fits(file, variant, family)
        except WeightsError as error:
            file.unlink()
            raise WeightsError(f"{error} The file was deleted.") from None
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
    """Copy a file (or the file in a folder) into the workspace, if its key tree is this backbone's.

    known: if the file is the published one of another of these variants, by its sha256, it is refused even if it fits.
    tell, lock_fd: see intake.taking_in.
    """
    folder = intake_folder(variant, workspace)
    with _writing(folder), intake.taking_in(folder, lock_fd=lock_fd, tell=tell) as tell:
        tell("checking", 0, None)
        here = stored(variant, workspace)
        if here and here.origin == "embedded":
            raise WeightsError(
                f"The weights of {variant.name} come with this package, so an imported file would never be used. To "
                f"train from {file}, set model.weights to it."
            )
        path = _file(file)
        other = _published(path, [one for one in known if one.name != variant.name])
        if other is not None:
            raise WeightsError(f"{path} is the published file of {other.name} (by its sha256), not of {variant.name}.")
        check_fits(path, variant, family)
        return _put(variant, path, workspace, came=f"imported from {path.resolve()}", move=False)


def recognise(file: Path, choices: Sequence[tuple[Variant, ModuleType]]) -> list[Variant]:
    """The variants whose key tree a file has. Raises WeightsError with the nearest one if it fits none.

    If several fit: the one with this published sha256, or else those whose head fits too, with any number of classes.
    """
    path = _file(file)
    tensors = key_tree.read(path)
    fits, with_head, closest = [], [], (0.0, "")
    for variant, family in choices:
        blank = key_tree.blank(variant, family)
        try:
            key_tree.fitted(blank, tensors, family, variant)
        except WeightsError as error:
            share = getattr(error, "share", 0.0)
            if share > closest[0]:
                closest = share, f"{variant.name}, with {_percent(share)} of the tensors: {error}"
            continue
        fits.append(variant)
        if key_tree.translated(blank, tensors, family).keys() == blank.state_dict().keys():
            with_head.append(variant)
    if not fits:
        near = f"The nearest is {closest[1]}" if closest[1] else "None of its tensors has a name and shape of theirs."
        raise WeightsError(f"{path} does not fit any known backbone. {near}")
    if len(fits) > 1 and (exact := _published(path, fits)):
        return [exact]
    return with_head or fits


def _published(path: Path, variants: Sequence[Variant]) -> Variant | None:
    """The variant whose published file this is, by sha256; the file is read only if one of their checksums is known."""
    known = {variant.download.sha256: variant for variant in variants if variant.download and variant.download.sha256}
    return known.get(sha256(path)) if known else None


def verify(variant: Variant, family: ModuleType, here: Stored) -> str:
    """ "" if a stored file is unchanged since it was installed and fits its backbone; else a sentence."""
    if here.recorded and (found := sha256(here.path)) != here.recorded:
        return f"{here.path} has changed: its sha256 is {found[:12]}..., but was {here.recorded[:12]}..."
    try:
        check_fits(_file(here.path), variant, family)
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
    """Load the weights that `weights_state` found into all of `module` except its head; returns the label to record.

    tell: called during a download, if one is needed, which it may end by raising. Raises WeightsError if there are no
    weights, or if they are not this backbone's; then the module is unchanged.
    """
    if not state.available:
        raise WeightsError(state.message)
    if state.path is None:
        state = fetch(variant, family, workspace, tell=tell)
    assert state.path is not None
    module.load_state_dict(_fitted(state.path, module, variant, family), strict=False)
    return f"{state.label}, sha256 {sha256(state.path)[:12]}"


def check_fits(file: Path, variant: Variant, family: ModuleType) -> None:
    """Read a file, and raise WeightsError if it is not this backbone's, or if its numbers are not finite."""
    _fitted(file, key_tree.blank(variant, family), variant, family)


def _fitted(file: Path, module: TakesWaveforms, variant: Variant, family: ModuleType) -> dict[str, Any]:
    try:
        found = key_tree.fitted(module, key_tree.read(file), family, variant)
        key_tree.check_finite(found)
    except key_tree.KeysDiffer as error:
        raise WeightsError(f"{file} does not fit {variant.name}: {error}") from None
    except key_tree.NotFinite as error:
        raise WeightsError(f"{file} cannot be used: {error}") from None
    return found


def _percent(share: float) -> str:
    """`97 %`; never 0 or 100 %, because some tensors fit, but not all."""
    return f"{min(99, max(1, round(100 * share)))} %"


def _put(variant: Variant, file: Path, workspace: Workspace, *, came: str, move: bool) -> WeightsState:
    """Move or copy a file that fits to its place in the workspace."""
    folder = workspace.weights / variant.name
    final = folder / ("model.safetensors" if file.suffix == ".safetensors" else "model.pth")
    new = file if move else folder / f".import-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not move:
            _copy(file, new)
        facts = {"file": file.name, "from": came, "sha256": sha256(new), "at": time.strftime("%Y-%m-%d %H:%M:%S")}
        # A crash between two of these lines leaves weights of unknown origin, never with a wrong one.
        (folder / ORIGIN).unlink(missing_ok=True)
        new.replace(final)
        for other in FILE_NAMES:
            if other != final.name:
                (folder / other).unlink(missing_ok=True)
        run_files.write_json(folder / ORIGIN, facts)
    except OSError as error:
        raise WeightsError(f"{file.name} could not be copied to {folder}: {error.strerror or error}.") from None
    finally:
        if not move:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)  # unless it has become `final`
    return weights_state(variant, workspace)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{folder} cannot be written to: {error.strerror or error}.") from None


def _cached(variant: Variant) -> Path | None:
    """The file in this machine's Hugging Face cache, if it was downloaded before; never uses the network."""
    url = variant.download.url if variant.download else None
    on_hub = re.fullmatch(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/main/(.+)", url or "")
    if not on_hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(on_hub[1], on_hub[2])
    return Path(found) if isinstance(found, str) else None


def options(variant: Variant, workspace: Workspace, why: str) -> str:
    """A message for missing weights: why they cannot be downloaded, and everything that the user can do."""
    folder, found = workspace.weights / variant.name, variant.download
    if found is None:
        return (
            f"The embedded weights of {variant.name} are missing from {EMBEDDED / variant.name}. Restore the file, "
            f"or set model.weights to a file or to random."
        )
    own_mini = f"{variant.family}-mini"
    mini = own_mini if (EMBEDDED / own_mini).is_dir() else "ast-mini"
    return (
        f"The weights of {variant.name} are not installed, and {why}. You can: download {found.file} from {found.page} "
        f"and import it (python -m sousa_engine weights import FILE), name it (model.weights=FILE) or copy it to "
        f"{folder}; use another backbone (model={mini}, whose weights are embedded); "
        f"or train from random weights as a control (model.weights=random)."
    )


def _origin(file: Path) -> dict[str, str]:
    return run_files.read_json(file.parent / ORIGIN) or {}


def _own_name(file: Path) -> str:
    return _origin(file).get("file", file.name)


def _file_state(path: Path, name: str = "") -> WeightsState:
    """State of a file, or of the weights file in a folder, as far as its first bytes and its length show it."""
    file = _file_in(path) if path.is_dir() else path
    problem = ""
    if file is None:
        problem = f"{path} contains no weights file. It needs one of: {', '.join(FILE_NAMES)}."
    elif not file.is_file():
        problem = f"There is no file {file}."
    else:
        problem = _broken(file)
    label = f"pretrained: {name or file.name}" if file else ""
    return WeightsState(available=not problem, label="" if problem else label, path=file, message=problem)


def _file(path: Path) -> Path:
    """The weights file that a user names. Raises WeightsError if it is missing or incomplete."""
    state = _file_state(inputs.typed_path(path, WeightsError))
    if not state.available:
        raise WeightsError(state.message)
    assert state.path is not None
    return state.path


def _file_in(folder: Path) -> Path | None:
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def _broken(file: Path) -> str:
    """Why a file cannot be complete weights, by its header and length alone; "" if it can."""
    if file.suffix != ".safetensors":
        try:
            return key_tree.not_weights(file)
        except OSError as error:
            return f"{file} cannot be read: {error.strerror or error}."
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > min(file.stat().st_size, MOST_HEADER_BYTES):
                raise ValueError
            header = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        wanted, size = 8 + length + max(ends, default=0), file.stat().st_size
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError):
        return f"{file} is not a safetensors file, or its beginning is missing. Download it again."
    return "" if size == wanted else f"{file} is truncated: it has {size:,} of {wanted:,} bytes. Download it again."


def _copy(source: Path, copy: Path) -> None:
    """Copy, and flush the copy to the disk."""
    with source.open("rb") as file, copy.open("wb") as out:
        shutil.copyfileobj(file, out, length=1 << 20)
        out.flush()
        os.fsync(out.fileno())
