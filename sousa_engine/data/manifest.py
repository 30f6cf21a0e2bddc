"""Open a data set by name or path: its clips with labels and splits. Decodes nothing and never imports torch."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sousa_engine.core import inputs, rudiments
from sousa_engine.core.config import DataConfig
from sousa_engine.core.contents import VERSION
from sousa_engine.core.errors import DataError, unknown
from sousa_engine.data import layouts, levels, reading, splits, synth, tables
from sousa_engine.data.clips import Clip, Excluded, Manifest
from sousa_engine.data.layouts import Readable, Recordings, UsableRecording
from sousa_engine.data.soundness import Soundness

SHORTEST_CLIP_S = 1.0  # of the automatic clip length: what every backbone accepts
LONGEST_CLIP_S = 10.0  # the automatic clip length never exceeds this; data.clip_s may
_KEY_VERSION = 2  # increased when the same files would give different waveforms


@dataclass(frozen=True, kw_only=True)
class EmbeddedSet:
    """A data set that the engine synthesises on demand. clips, classes, players: how many."""

    name: str
    clips: int
    classes: int
    players: int
    clip_s: float


def open_dataset(config: DataConfig, soundness: Mapping[str, Soundness] | None = None) -> Manifest:
    """The data set that `config.dataset` names: an embedded set, a folder, or a table.

    Unusable files, and classes with too few usable clips, are in `excluded`. soundness: as from layouts.as_now; the
    headers of all other files are read in this process (data/dataset.py does that safely). Raises UnknownNameError for
    an unknown name and DataError for data that cannot be used for training; both messages say what to do.
    """
    if config.dataset in synth.PRESETS:
        spec = synth.PRESETS[config.dataset]
        return _embedded(spec if config.clip_s is None else replace(spec, clip_s=config.clip_s))
    recordings = list_files(config)
    return from_recordings(config, recordings, layouts.read_headers(recordings, soundness or {}))


def list_files(config: DataConfig) -> Recordings:
    """The files that a folder or table lists, by name only. Raises the same errors as open_dataset."""
    path = inputs.typed_path(config.dataset, DataError)
    if path.is_file() and path.suffix.lower() not in tables.SUFFIXES:
        raise DataError(
            f"{config.dataset} is a single file. A data set is a folder of recordings, or a table of them "
            f"({', '.join(sorted(tables.SUFFIXES))}) with the columns path and label."
        )
    if path.is_dir() or path.is_file():
        return reading.read(path.resolve(), config)
    if _looks_like_path(config.dataset):
        full = "" if str(path.absolute()) == config.dataset else f" (looked for {path.absolute()})"
        raise DataError(f"There is no folder or file {config.dataset}{full}.")
    raise type(error := unknown("data set", config.dataset, synth.PRESETS))(
        f"{error} For your own data, give the path of a folder of classes or of a table."
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
    """`3 of 1,000 files are left out: a.wav: the file is empty ...; and 2 more.`; "" if all files are used."""
    count = len(manifest.excluded)
    if not count:
        return ""
    shown = "; ".join(f"{found.name}: {found.reason}" for found in manifest.excluded[:3])
    more = f"; and {count - 3:,} more (page Data lists them)" if count > 3 else ""
    return (
        f"{count:,} of {len(manifest.clips) + count:,} files {'is' if count == 1 else 'are'} left out: {shown}{more}."
    )


def absolute(dataset: str) -> str:
    """The form for a stored config: the name of an embedded set unchanged, a path made absolute."""
    if dataset.strip() in synth.PRESETS:
        return dataset.strip()
    path = inputs.typed_path(dataset, DataError)
    return str(path.resolve()) if path.exists() else dataset


def contents(manifest: Manifest) -> dict[str, Any]:
    """What identifies the sounds, labels and splits of a data set, as core.contents describes it; {} while not all of
    its files were scanned."""
    if not manifest.contents:
        return {}
    splits = {split: [key, manifest.sizes[split]] for split, key in manifest.contents.items()}
    return {"version": VERSION, "clip_s": manifest.clip_s, "all": manifest.fingerprint, **splits}


def fingerprint_of_files(manifest: Manifest) -> str:
    """32 hex digits by which checkpoints knew a data set before they kept its contents: they also change with the
    places and times of its files."""
    digest = hashlib.sha256(f"{manifest.files_key}\n{manifest.classes!r}\n".encode("utf-8", "surrogateescape"))
    for clip in manifest.clips:
        digest.update(f"{clip.clip_id}\0{clip.label}\0{clip.split}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def majority_baseline(manifest: Manifest, split: str) -> float:
    """Accuracy on `split` of always predicting train's most frequent class (the first one, if tied)."""
    most = max(manifest.classes, key=lambda label: manifest.counts[label]["train"])
    return manifest.counts[most][split] / manifest.sizes[split]


@lru_cache(maxsize=4)
def _embedded(spec: synth.SynthSpec) -> Manifest:
    plans, key = synth.plan(spec), synth.content_key(spec)
    notes = []
    short = synth.short_clips(plans)
    if short:
        names = sorted({p.label for p in short})
        notes.append(
            f"{len(short)} of {len(plans)} clips are shorter than one cycle of their rudiment "
            f"({levels.some(names, 4)}): {spec.clip_s:g} s is too short for it at its usual tempi."
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
            content=hashlib.sha256(f"{key} {p.clip_id}".encode()).hexdigest()[:32],
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
        content_key=key,
        files_key=key,
        notes=tuple(notes),
    )


def from_recordings(config: DataConfig, listed: Recordings, readable: Readable) -> Manifest:
    """The manifest of a folder or table. Raises DataError if it cannot be used for training."""
    source = listed.source
    recordings, split, excluded, lost = _trainable(config, readable)
    lost, shared = (*readable.notes, *lost), _player_notes(recordings, split)
    classes = tuple(sorted({r.label for r in recordings}))
    clip_s = config.clip_s or _own_clip_s(recordings)
    files_key = _files_key(source, recordings, clip_s)
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
            content=r.digest,
        )
        for r, s in zip(recordings, split, strict=True)
    )
    return Manifest(
        name=source.name if source.is_dir() else source.stem,
        layout="folder" if source.is_dir() else "csv",
        classes=classes,
        clips=clips,
        clip_s=clip_s,
        sample_rate_hz=max(rates, key=lambda rate: (rates[rate], rate)),
        content_key=_content_key(recordings, clip_s) or files_key,
        files_key=files_key,
        notes=(
            *_reading_notes(listed, len(clips), len(classes)),
            *lost,
            *_split_notes(config, recordings),
            *shared,
            *_length_notes(recordings, clip_s),
            *_rate_notes(rates),
        ),
        excluded=excluded,
        warnings=(*lost, *shared),
    )


def _reading_notes(listed: Recordings, clips: int, classes: int) -> list[str]:
    return [listed.reading.sentence(clips, classes), *listed.reading.evidence] if listed.reading else []


def _trainable(
    config: DataConfig, readable: Readable
) -> tuple[tuple[UsableRecording, ...], tuple[str, ...], tuple[Excluded, ...], list[str]]:
    """The recordings of classes that can be in every split, their splits, everything left out, and notes on that."""
    recordings, excluded, notes = _long_enough(config, readable), list(readable.excluded), []
    excluded += [
        Excluded(name=layouts.shown(one.clip_id), kind="short", reason=_too_short(one, config.shortest_s))
        for one in readable.recordings
        if one.header.duration_s < config.shortest_s
    ]
    reason = f" {excluded[0].name}: {excluded[0].reason}." if excluded else ""
    while True:
        labels = sorted({r.label for r in recordings})
        if not labels:
            raise DataError(f"{config.dataset} holds no usable clip.{reason}")
        if len(labels) < 2:
            raise DataError(
                f"{config.dataset} holds only one class ({labels[0]!r}); a classifier needs at least two. "
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


def _long_enough(config: DataConfig, readable: Readable) -> tuple[UsableRecording, ...]:
    return tuple(one for one in readable.recordings if one.header.duration_s >= config.shortest_s)


def _too_short(one: UsableRecording, shortest_s: float) -> str:
    return (
        f"it is {one.header.duration_s:.3g} s long, shorter than {shortest_s:g} s (data.shortest_s); "
        "record it longer, or remove it"
    )


def _splits(config: DataConfig, recordings: tuple[UsableRecording, ...]) -> tuple[str, ...]:
    """The split of each recording: as the data set says; where it does not say, one that is made here."""
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


def _items(recordings: tuple[UsableRecording, ...]) -> list[splits.Item]:
    return [splits.Item(r.clip_id, r.label, r.group) for r in recordings]


def _split_notes(config: DataConfig, recordings: tuple[UsableRecording, ...]) -> list[str]:
    """How the splits that the data set does not bring were made."""
    brought = {r.split for r in recordings if r.split}
    missing = [name for name in ("valid", "test") if name not in brought]
    if not missing:
        return []
    how = "each player is in one split" if any(r.group for r in recordings) else "stratified by class"
    source = "taken from train" if brought else "split made here"
    return [f"{' and '.join(missing).capitalize()}: {source} (seed {config.split_seed}), {how}."]


def _player_notes(recordings: tuple[UsableRecording, ...], split: tuple[str, ...]) -> list[str]:
    shared = splits.shared_groups(_items(recordings), split)
    if not shared:
        return []
    return [
        f"{len(shared)} {'player is' if len(shared) == 1 else 'players are'} in train and also in valid or test "
        f"({levels.some(shared, 4)}): "
        "the scores then include familiar players."
    ]


def _own_clip_s(recordings: tuple[UsableRecording, ...]) -> float:
    """The length that fits 95 % of the recordings, rounded up to half a second, within SHORTEST_ and LONGEST_CLIP_S."""
    longest_s = float(np.percentile([r.header.duration_s for r in recordings], 95))
    return min(max(math.ceil(longest_s * 2 - 1e-6) / 2, SHORTEST_CLIP_S), LONGEST_CLIP_S)


def _length_notes(recordings: tuple[UsableRecording, ...], clip_s: float) -> list[str]:
    cut = sum(r.header.duration_s > clip_s + 0.01 for r in recordings)
    padded = sum(r.header.duration_s < clip_s - 0.01 for r in recordings)
    notes = []
    if cut:
        notes.append(f"{_of(cut, recordings)} longer than {clip_s:g} s: only the beginning is used.")
    if padded:
        notes.append(f"{_of(padded, recordings)} shorter than {clip_s:g} s: silence is added at the end.")
    return notes


def _of(count: int, recordings: tuple[UsableRecording, ...]) -> str:
    return f"{count:,} of {len(recordings):,} recordings {'is' if count == 1 else 'are'}"


def _rate_notes(rates: Counter[int]) -> list[str]:
    if len(rates) == 1:
        return []
    named = rates.most_common(4)
    listed = ", ".join(f"{n} at {rate} Hz" for rate, n in named)
    if rest := rates.total() - sum(n for _, n in named):
        listed += f", {rest} at {len(rates) - 4} other{'s' if len(rates) > 5 else ''}"
    return [f"Sample rates differ ({listed}): all clips are resampled to the backbone's rate."]


def _content_key(recordings: tuple[UsableRecording, ...], clip_s: float) -> str:
    """Of the sounds in their order; "" if any is not known."""
    if not all(r.digest for r in recordings):
        return ""
    lines = "\n".join(r.digest for r in recordings)
    return hashlib.sha256(f"{_KEY_VERSION}\n{clip_s!r}\n{lines}".encode()).hexdigest()[:32]


def _files_key(root: Path, recordings: tuple[UsableRecording, ...], clip_s: float) -> str:
    # Includes the root: exports of two data sets can agree in every name, size and time.
    digest = hashlib.sha256(f"1\n{root}\n{clip_s!r}\n".encode())
    for r in recordings:
        digest.update(f"{r.clip_id}\0{r.header.size}\0{r.header.mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _looks_like_path(text: str) -> bool:
    return any(c in text for c in "/\\~") or text.startswith(".") or text.lower().endswith((".csv", ".tsv"))
