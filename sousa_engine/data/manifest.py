"""A data set as a training reads it: clips with labels and splits, opened by name or path. No audio, no torch."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from sousa_engine.core import inputs, rudiments
from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError, unknown
from sousa_engine.data import layouts, splits, synth
from sousa_engine.data.clips import Clip, Excluded, Manifest
from sousa_engine.data.layouts import Found, Listing, Recording
from sousa_engine.data.soundness import Soundness
from sousa_engine.data.splits import SPLITS

LONGEST_CLIP_S = 10.0  # a data set's own clip length never exceeds this; data.clip_s may
_KEY_VERSION = 1  # raised when the same files would give other waveforms


@dataclass(frozen=True, kw_only=True)
class EmbeddedSet:
    """A data set that the engine synthesises on demand."""

    name: str
    clips: int
    classes: int
    players: int
    clip_s: float


def open_dataset(config: DataConfig, verdicts: Mapping[str, Soundness] | None = None) -> Manifest:
    """The data set that `config.dataset` names: an embedded set, a folder of classes, or a CSV file.

    What cannot be used is in `excluded`: files, and the classes that the rest leaves too few of. verdicts: by path,
    what decoding said of the files (data/scan.py); of the others the header alone is read. Raises UnknownNameError
    for a name that is neither, DataError for data that cannot be trained on; both say what to do.
    """
    if config.dataset in synth.PRESETS:
        spec = synth.PRESETS[config.dataset]
        return _embedded(spec if config.clip_s is None else replace(spec, clip_s=config.clip_s))
    root, listing = list_files(config)
    found = layouts.probe(listing, verdicts or {})
    return _from_files(config, "folder" if root.is_dir() else "csv", root, found)


def list_files(config: DataConfig) -> tuple[Path, Listing]:
    """Where a data set of files lies, and what it claims to hold; no file is looked at. Raises as open_dataset."""
    path = inputs.typed_path(config.dataset, DataError)
    if path.is_dir():
        return path, layouts.list_folder(path.resolve())
    if path.is_file():
        if path.suffix.lower() not in {".csv", ".tsv"}:
            raise DataError(
                f"{config.dataset} is a single file. A data set is a folder of classes, or a CSV file with the "
                "columns path and label."
            )
        return path, layouts.list_csv(path.resolve())
    if _looks_like_path(config.dataset):
        full = "" if str(path.absolute()) == config.dataset else f" (looked for {path.absolute()})"
        raise DataError(f"There is no folder or file {config.dataset}{full}.")
    raise type(error := unknown("data set", config.dataset, synth.PRESETS))(
        f"{error} For data of your own, give the path of a folder of classes or of a CSV file."
    )


def dataset_names() -> tuple[EmbeddedSet, ...]:
    """The embedded data sets, smallest first."""
    return tuple(
        EmbeddedSet(
            name=spec.name,
            clips=len(rudiments.RUDIMENTS) * spec.clips_per_class,
            classes=len(rudiments.RUDIMENTS),
            players=spec.players,
            clip_s=spec.clip_s,
        )
        for spec in sorted(synth.PRESETS.values(), key=lambda spec: spec.clips_per_class)
    )


def left_out(manifest: Manifest) -> str:
    """`3 of 1,000 files are left out: a.wav: the file is empty ...; and 2 more.`; "" if every file is used."""
    count = len(manifest.excluded)
    if not count:
        return ""
    shown = "; ".join(f"{found.name}: {found.reason}" for found in manifest.excluded[:3])
    more = f"; and {count - 3:,} more (page Data lists them)" if count > 3 else ""
    return (
        f"{count:,} of {len(manifest.clips) + count:,} files {'is' if count == 1 else 'are'} left out: {shown}{more}."
    )


def absolute(dataset: str) -> str:
    """The name of an embedded set as it is, a path made absolute: what a stored config should hold."""
    if dataset in synth.PRESETS:
        return dataset
    path = inputs.typed_path(dataset, DataError)
    return str(path.resolve()) if path.exists() else dataset


def counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Class -> split -> number of clips, in the order of classes and of train, valid, test."""
    held = Counter((clip.label, clip.split) for clip in manifest.clips)
    return {label: {split: held[label, split] for split in SPLITS} for label in manifest.classes}


def fingerprint(manifest: Manifest) -> str:
    """32 hex digits that change whenever a training on it would: waveforms, labels or splits."""
    digest = hashlib.sha256(f"{manifest.content_key}\n{manifest.classes!r}\n".encode("utf-8", "surrogateescape"))
    for clip in manifest.clips:
        digest.update(f"{clip.clip_id}\0{clip.label}\0{clip.split}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def majority_baseline(manifest: Manifest, split: str) -> float:
    """Accuracy on `split` of always answering with the class that train holds most of (the first one, if tied)."""
    held = counts(manifest)
    most = max(manifest.classes, key=lambda label: held[label]["train"])
    return held[most][split] / sum(held[label][split] for label in manifest.classes)


@lru_cache(maxsize=4)
def _embedded(spec: synth.SynthSpec) -> Manifest:
    plans = synth.plan(spec)
    notes = []
    short = synth.short_clips(plans)
    if short:
        names = sorted({p.label for p in short})
        notes.append(
            f"{len(short)} of {len(plans)} clips are shorter than one cycle of their rudiment "
            f"({_some(names)}): {spec.clip_s:g} s cannot hold it at its usual tempi."
        )
    clips = tuple(
        Clip(
            clip_id=p.clip_id,
            label=p.label,
            split=p.split,
            group=p.player,
            duration_s=p.duration_s,
            columns={
                "player": p.player,
                "tempo_bpm": p.tempo_bpm,
                "tier": p.tier,
                "snr_db": p.snr_db,
                "room": p.room,
                "cycles": p.cycles,
            },
            source=p,
        )
        for p in plans
    )
    return Manifest(
        name=spec.name,
        layout="embedded",
        classes=tuple(sorted({p.label for p in plans})),
        clips=clips,
        clip_s=spec.clip_s,
        sample_rate_hz=spec.sample_rate_hz,
        content_key=synth.content_key(spec),
        notes=tuple(notes),
    )


def _from_files(config: DataConfig, layout: str, root: Path, found: Found) -> Manifest:
    recordings, split, excluded, lost = _trainable(config, found)
    lost, shared = (*found.notes, *lost), _player_notes(recordings, split)
    classes = tuple(sorted({r.label for r in recordings}))
    clip_s = config.clip_s or _own_clip_s(recordings)
    rates = Counter(r.header.sample_rate_hz for r in recordings)
    clips = tuple(
        Clip(
            clip_id=r.clip_id,
            label=r.label,
            split=s,
            group=r.group,
            duration_s=r.header.duration_s,
            columns=({"player": r.group} if r.group else {}) | r.columns,
            source=r.path,
        )
        for r, s in zip(recordings, split, strict=True)
    )
    return Manifest(
        name=root.resolve().stem if layout == "csv" else root.resolve().name,
        layout=layout,
        classes=classes,
        clips=clips,
        clip_s=clip_s,
        sample_rate_hz=max(rates, key=lambda rate: (rates[rate], rate)),
        content_key=_content_key(root.resolve(), recordings, clip_s),
        notes=(
            *lost,
            *_split_notes(config, recordings),
            *shared,
            *_length_notes(recordings, clip_s),
            *_rate_notes(rates),
        ),
        excluded=excluded,
        warnings=(*lost, *shared),
    )


def _trainable(
    config: DataConfig, found: Found
) -> tuple[tuple[Recording, ...], tuple[str, ...], tuple[Excluded, ...], list[str]]:
    """The recordings of classes that can be in every split, their splits, all that is left out, and notes on that."""
    recordings, excluded, notes = found.recordings, list(found.excluded), []
    reason = f" {excluded[0].name}: {excluded[0].reason}." if excluded else ""
    while True:
        labels = sorted({r.label for r in recordings})
        if not labels:
            raise DataError(f"{config.dataset} holds no usable clip.{reason}")
        if len(labels) < 2:
            raise DataError(
                f"{config.dataset} holds one class only ({labels[0]!r}); a classifier needs at least two. "
                f"Add clips of another class.{reason}"
            )
        try:
            return recordings, _splits(config, recordings), tuple(excluded), notes
        except splits.NoRoom as error:
            if len(labels) - len(error.classes) < 2:
                raise
            for label, why in error.classes.items():
                notes.append(f"Class {label!r} {why}: it is left out.")
                clause = f"its class {label!r} {why}; add recordings"
                names = [layouts.shown(r.clip_id) for r in recordings if r.label == label]
                excluded += [Excluded(name=name, reason=clause, kind="class") for name in names]
            recordings = tuple(r for r in recordings if r.label not in error.classes)


def _splits(config: DataConfig, recordings: tuple[Recording, ...]) -> tuple[str, ...]:
    """The split of each recording: as the data says, and shared out by us where it does not."""
    items = _items(recordings)
    brought = {r.split for r in recordings if r.split}
    if brought and "train" not in brought:
        raise DataError(f"{config.dataset} has {' and '.join(sorted(brought))} but no train. Name one split train.")
    wanted = {"valid": config.valid_fraction, "test": config.test_fraction}
    missing = {name: share for name, share in wanted.items() if name not in brought}
    split = [r.split or "train" for r in recordings]
    if missing:
        open_ = [i for i, name in enumerate(split) if name == "train"]
        for i, name in zip(open_, splits.assign([items[i] for i in open_], missing, config.split_seed), strict=True):
            split[i] = name
    splits.check(items, split)
    return tuple(split)


def _items(recordings: tuple[Recording, ...]) -> list[splits.Item]:
    return [splits.Item(r.clip_id, r.label, r.group) for r in recordings]


def _split_notes(config: DataConfig, recordings: tuple[Recording, ...]) -> list[str]:
    """Where the splits come from that the data did not bring."""
    brought = {r.split for r in recordings if r.split}
    missing = [name for name in ("valid", "test") if name not in brought]
    if not missing:
        return []
    how = "players are kept whole" if any(r.group for r in recordings) else "every class in the same shares"
    source = "taken from train" if brought else "split here"
    return [f"{' and '.join(missing).capitalize()}: {source}, seed {config.split_seed}; {how}."]


def _player_notes(recordings: tuple[Recording, ...], split: tuple[str, ...]) -> list[str]:
    shared = splits.shared_groups(_items(recordings), split)
    if not shared:
        return []
    return [
        f"{len(shared)} players are heard in train and again in valid or test ({_some(shared)}): "
        "the figures then include familiar players."
    ]


def _own_clip_s(recordings: tuple[Recording, ...]) -> float:
    """The length that 95 % of the recordings fit into, rounded up to half a second, at most 10 s."""
    longest_s = float(np.percentile([r.header.duration_s for r in recordings], 95))
    return min(max(math.ceil(longest_s * 2 - 1e-6) / 2, 0.5), LONGEST_CLIP_S)


def _length_notes(recordings: tuple[Recording, ...], clip_s: float) -> list[str]:
    cut = sum(r.header.duration_s > clip_s + 0.01 for r in recordings)
    padded = sum(r.header.duration_s < clip_s - 0.01 for r in recordings)
    notes = []
    if cut:
        notes.append(f"{cut} of {len(recordings)} recordings are longer than {clip_s:g} s: their first part is used.")
    if padded:
        notes.append(f"{padded} of {len(recordings)} recordings are shorter than {clip_s:g} s: silence follows them.")
    return notes


def _rate_notes(rates: Counter[int]) -> list[str]:
    if len(rates) == 1:
        return []
    named = rates.most_common(4)
    listed = ", ".join(f"{n} at {rate} Hz" for rate, n in named)
    if rest := rates.total() - sum(n for _, n in named):
        listed += f", {rest} at {len(rates) - 4} other{'s' if len(rates) > 5 else ''}"
    return [f"Sample rates differ ({listed}): all are resampled to the backbone's."]


def _content_key(root: Path, recordings: tuple[Recording, ...], clip_s: float) -> str:
    # The root is in it: exports of two data sets can agree in every name, size and time.
    digest = hashlib.sha256(f"{_KEY_VERSION}\n{root}\n{clip_s!r}\n".encode())
    for r in recordings:
        digest.update(f"{r.clip_id}\0{r.header.size}\0{r.header.mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _looks_like_path(text: str) -> bool:
    return any(c in text for c in "/\\~") or text.startswith(".") or text.lower().endswith((".csv", ".tsv"))


def _some(names: tuple[str, ...] | list[str], n: int = 4) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
