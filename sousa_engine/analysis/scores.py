"""Accuracy on parts of the test split: per class, rudiment group, and slice of tempo, player, noise or room."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sousa_engine.analysis import rudiment_groups
from sousa_engine.analysis.significance import wilson_of_mean
from sousa_engine.analysis.sweeps import TrialRow
from sousa_engine.core.config import DataConfig
from sousa_engine.core.records import ClipScore
from sousa_engine.data import manifest, synth
from sousa_engine.data.clips import Clip

ALL = "all clips"


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean accuracy of `seeds` runs on the same n clips; value, low and high are shares.

    low, high: Wilson's 95 % interval of the mean. It reflects the sample of clips, not variation between seeds.
    """

    value: float
    low: float
    high: float
    n: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """A way to divide the test clips. bin_of: clip id -> one of bins."""

    name: str
    bins: tuple[str, ...]
    bin_of: Mapping[str, str]


def row_score(row: TrialRow) -> Score | None:
    """Test accuracy of a setting; None until one of its runs has finished."""
    found = row.test_interval
    if found is None or row.mean_test is None:
        return None
    return Score(value=row.mean_test, low=found.low, high=found.high, n=found.n, seeds=len(row.test))


def class_scores(scores: Sequence[ClipScore]) -> dict[str, Score]:
    """Class -> its score, ordered by rudiment group."""
    return grouped(scores, lambda clip: (clip.label,), rudiment_groups.by_group({clip.label for clip in scores}))


def group_scores(scores: Sequence[ClipScore]) -> dict[str, Score]:
    """All clips, then rudiment groups, then acoustic twins and the others; only all clips if none is a rudiment."""
    return grouped(scores, lambda clip: (ALL, *rudiment_groups.groups_of(clip.label)), (ALL, *rudiment_groups.groups()))


def slice_scores(scores: Sequence[ClipScore], slicing: Slicing) -> dict[str, Score]:
    """Bin -> its score. Clips unknown to the slicing are ignored."""
    return grouped(scores, lambda clip: (slicing.bin_of.get(clip.clip_id, ""),), slicing.bins)


def grouped(
    scores: Iterable[ClipScore], names: Callable[[ClipScore], Iterable[str]], order: Sequence[str]
) -> dict[str, Score]:
    """Group -> its score, in `order`; groups without clips are left out, clips without a group are ignored."""
    right, asked, n, seeds = (dict.fromkeys(order, 0) for _ in range(4))
    for clip in scores:
        for name in names(clip):
            if name in n:
                right[name] += clip.right
                asked[name] += clip.runs
                n[name] += 1
                seeds[name] = max(seeds[name], clip.runs)
    return {name: _score(right[name] / asked[name], n[name], seeds[name]) for name in order if n[name]}


@lru_cache(maxsize=8)
def slicings(dataset: str, clip_s: float | None) -> tuple[Slicing, ...]:
    """The ways to divide the test clips of an embedded set; () for other data sets, which lack this information.

    It comes from the plan of the synthesiser: no audio is synthesised and no file is read.
    """
    if dataset not in synth.PRESETS:
        return ()
    config = DataConfig(dataset=dataset, clip_s=clip_s)  # pyright: ignore[reportCallIssue]
    clips = [clip for clip in manifest.open_dataset(config).clips if clip.split == "test"]
    plans = {clip.clip_id: clip for clip in clips}
    edges = _edges([float(clip.columns["tempo_bpm"]) for clip in clips])
    tempi = _between(edges)
    thirds = ("slow third of its range", "middle third", "fast third")
    snrs = sorted({float(clip.columns["snr_db"]) for clip in clips}, reverse=True)
    return (
        _slicing("Tempo", tempi, plans, lambda c: tempi[int(np.searchsorted(edges, c.columns["tempo_bpm"], "right"))]),
        _slicing("Tempo of the rudiment", thirds, plans, lambda c: thirds[_third(c)]),
        _slicing("Player", tuple(synth.TIERS), plans, lambda c: str(c.columns["tier"])),
        _slicing("Noise", tuple(f"{snr:g} dB SNR" for snr in snrs), plans, lambda c: f"{c.columns['snr_db']:g} dB SNR"),
        _slicing(
            "Room", tuple(sorted({str(c.columns["room"]) for c in clips})), plans, lambda c: str(c.columns["room"])
        ),
    )


def _score(share: float, n: int, seeds: int) -> Score:
    interval = wilson_of_mean(share, n)
    return Score(value=share, low=min(interval.low, share), high=max(interval.high, share), n=n, seeds=seeds)


def _slicing(name: str, bins: tuple[str, ...], clips: Mapping[str, Clip], bin_of: Callable[[Clip], str]) -> Slicing:
    return Slicing(name=name, bins=bins, bin_of={clip_id: bin_of(clip) for clip_id, clip in clips.items()})


def _edges(tempi: Sequence[float]) -> list[float]:
    """Quartiles, rounded to tens of BPM."""
    return sorted({round(float(edge), -1) for edge in np.quantile(tempi, (0.25, 0.5, 0.75))})


def _between(edges: Sequence[float]) -> tuple[str, ...]:
    inner = [f"{low:g} to {high:g} BPM" for low, high in itertools.pairwise(edges)]
    return f"below {edges[0]:g} BPM", *inner, f"from {edges[-1]:g} BPM"


def _third(clip: Clip) -> int:
    """Which third of the usual tempo range of its rudiment (by ratio) a clip is in."""
    known = rudiment_groups.rudiment_of(clip.label)
    assert known is not None, "embedded sets hold rudiments"
    low, high = known.tempo_bpm
    share = math.log(float(clip.columns["tempo_bpm"]) / low) / math.log(high / low)
    return min(2, max(0, int(3 * share)))
