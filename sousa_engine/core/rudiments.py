"""The 40 PAS drum rudiments: when each stroke falls, with which hand, and the usual tempo.

The facts are in rudiments.json in this folder and are read on first use. Time is counted in ticks, 24 to the beat.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from sousa_engine.core.errors import unknown

RUDIMENTS: tuple[Rudiment, ...]
"""All 40, in the order of the PAS sheet."""

ACOUSTIC_TWINS: tuple[tuple[str, ...], ...]
"""Groups of slugs whose strokes and accents fall at the same times: only the timbre of the hands differs."""


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """One primary stroke; its grace strokes come just before it, unmeasured and in order."""

    tick: int
    hand: str  # "R" or "L"
    accent: bool = False
    grace: str = ""  # hands of the grace strokes: none, one for a flam, two for a drag
    kind: str = "tap"  # "tap" or "buzz" (a multiple bounce)
    diddle: int = 0  # 1 and 2: first and second stroke of a double

    @property
    def is_flam(self) -> bool:
        return len(self.grace) == 1

    @property
    def is_drag(self) -> bool:
        return len(self.grace) == 2


@dataclass(frozen=True, kw_only=True)
class Rudiment:
    """One cycle of a rudiment, as repeated in practice."""

    number: int  # 1 to 40, PAS order
    name: str
    slug: str
    sousa_slug: str  # the name of this rudiment in the SOUSA data set
    group: str  # roll, diddle, flam or drag
    subdivision: str
    ticks_per_beat: int
    cycle_ticks: int
    tempo_bpm: tuple[float, float]  # slowest and fastest usual tempo
    sticking: str
    strokes: tuple[Stroke, ...]
    note: str  # where sources disagree, and which version this is
    sounds_like: tuple[str, ...]

    @property
    def cycle_beats(self) -> float:
        return self.cycle_ticks / self.ticks_per_beat

    def cycle_s(self, tempo_bpm: float) -> float:
        """Length of one cycle at a tempo, in seconds."""
        return self.cycle_beats * 60.0 / tempo_bpm


def rudiment(slug: str) -> Rudiment:
    """The rudiment with this slug ("single-paradiddle"). Raises UnknownNameError with the nearest ones."""
    found = _by_slug().get(slug)
    if found is None:
        raise unknown("rudiment", slug, _by_slug())
    return found


def __getattr__(name: str) -> Any:
    if name == "RUDIMENTS":
        return _sheet()[0]
    if name == "ACOUSTIC_TWINS":
        return _sheet()[1]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _by_slug() -> dict[str, Rudiment]:
    return {r.slug: r for r in _sheet()[0]}


@cache
def _sheet() -> tuple[tuple[Rudiment, ...], tuple[tuple[str, ...], ...]]:
    sheet = json.loads(files("sousa_engine.core").joinpath("rudiments.json").read_text(encoding="utf-8"))
    rudiments = tuple(_rudiment(entry) for entry in sheet["rudiments"])
    return rudiments, tuple(tuple(group) for group in sheet["acoustic_twins"])


def _rudiment(entry: dict[str, Any]) -> Rudiment:
    low, high = entry["tempo_bpm"]
    strokes = tuple(Stroke(tick=s["t"], **{k: v for k, v in s.items() if k != "t"}) for s in entry["strokes"])
    fields = {"group" if key == "family" else key: value for key, value in entry.items()}
    fields |= {"tempo_bpm": (float(low), float(high)), "strokes": strokes}
    return Rudiment(**{**fields, "sounds_like": tuple(entry["sounds_like"])})
