"""Synthesised recordings of the 40 rudiments: data that is always available and completely known.

`plan` lists the clips of a preset without rendering them; `render` makes one clip. Players differ in drum, hands and
skill, and each is in one split, so the test clips are always by unseen players. A clip depends only on its plan: it has
the same bits on every call, in any order, in any process.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sousa_engine.core import rudiments
from sousa_engine.core.errors import DataError
from sousa_engine.core.rudiments import Stroke
from sousa_engine.data import strokes as sound

SYNTH_VERSION = 1
"""Increased whenever any clip would sound different, so that caches of older clips are computed again."""

SNRS_DB = (40.0, 30.0, 20.0, 12.0)
_LEAD_S = (0.02, 0.12)  # silence before the first stroke, shortest and longest
_FLAM_AHEAD_S = 0.05  # room for grace strokes before a clip's first primary stroke


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The skill of a player. Levels in dB."""

    jitter: float  # standard deviation of a stroke's timing, as a fraction of the gap to its neighbour
    weak_hand_db: float  # how much softer the left hand is
    weak_hand_lag_s: float  # how late the left hand is
    drift: float  # standard deviation of the tempo's random walk, per beat
    flam_s: float  # mean distance of a grace stroke
    flam_spread: float  # its standard deviation, as a fraction
    accent_db: float  # level of an accent above a tap
    level_spread_db: float
    diddle_drop_db: float  # level of the second stroke of a double below the first


TIERS: dict[str, Tier] = {
    "advanced": Tier(
        jitter=0.015,
        weak_hand_db=0.5,
        weak_hand_lag_s=0.0,
        drift=0.002,
        flam_s=0.024,
        flam_spread=0.12,
        accent_db=9.0,
        level_spread_db=0.7,
        diddle_drop_db=0.7,
    ),
    "intermediate": Tier(
        jitter=0.035,
        weak_hand_db=1.3,
        weak_hand_lag_s=0.002,
        drift=0.006,
        flam_s=0.029,
        flam_spread=0.22,
        accent_db=7.5,
        level_spread_db=1.3,
        diddle_drop_db=1.6,
    ),
    "beginner": Tier(
        jitter=0.065,
        weak_hand_db=2.5,
        weak_hand_lag_s=0.005,
        drift=0.015,
        flam_s=0.036,
        flam_spread=0.32,
        accent_db=6.0,
        level_spread_db=2.0,
        diddle_drop_db=2.8,
    ),
}


@dataclass(frozen=True, kw_only=True)
class SynthSpec:
    """A data set to synthesise: every rudiment `clips_per_class` times, evenly distributed among the players."""

    name: str
    clips_per_class: int
    players: int
    clip_s: float = 4.0
    sample_rate_hz: int = sound.SAMPLE_RATE_HZ
    seed: int = 0

    def __post_init__(self) -> None:
        if self.players < 3:
            raise DataError(f"players={self.players}: three splits need at least 3 players.")
        if self.clips_per_class < self.players:
            raise DataError(
                f"clips_per_class={self.clips_per_class} is less than players={self.players}: "
                "every player plays every rudiment, so increase the first or decrease the second."
            )
        if not 1.0 <= self.clip_s <= 4.0:
            raise DataError(f"clip_s={self.clip_s}: the synthesiser makes clips of 1 to 4 seconds.")
        if self.sample_rate_hz != sound.SAMPLE_RATE_HZ:
            raise DataError(f"sample_rate_hz={self.sample_rate_hz}: the synthesiser only makes clips at 16000 Hz.")


PRESETS: dict[str, SynthSpec] = {
    "micro": SynthSpec(name="micro", clips_per_class=4, players=4),
    "tiny": SynthSpec(name="tiny", clips_per_class=25, players=25),
    "small": SynthSpec(name="small", clips_per_class=100, players=50),
    "medium": SynthSpec(name="medium", clips_per_class=400, players=100),
}


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """All facts that determine one clip."""

    clip_id: str  # "tiny/single-paradiddle/0007"
    label: str  # the rudiment's slug
    split: str
    player: str
    tempo_bpm: float
    tier: str
    snr_db: float
    room: str
    duration_s: float
    cycles: float  # how many cycles fit; below 1, the clip is too short for its rudiment
    seed: int
    player_seed: int


@dataclass(frozen=True, kw_only=True)
class StrokeEvent:
    """One primary stroke as played."""

    onset_s: float
    gap_s: float  # to the next primary stroke
    hand: str
    accent: bool
    flam: bool
    drag: bool
    buzz: bool
    index: int  # of the stroke in its cycle


def plan(spec: SynthSpec) -> tuple[ClipPlan, ...]:
    """Every clip of a data set, ordered by rudiment and number; no audio is rendered.

    Clip n of a rudiment is played by player n modulo `spec.players`; about 64 % of the players are in train, 16 % in
    valid, 20 % in test, and at least one in each.
    """
    n_test = max(1, round(spec.players * 0.2))
    n_valid = max(1, round(spec.players * 0.16))
    first_valid = spec.players - n_test - n_valid
    tier_names = tuple(TIERS)
    plans = []
    for r in rudiments.RUDIMENTS:
        for number in range(spec.clips_per_class):
            index = number % spec.players
            clip_id = f"{spec.name}/{r.slug}/{number:04d}"
            player = f"{spec.name}-p{index:03d}"
            seed = _seed(spec.seed, clip_id)
            rng = np.random.default_rng([seed, 0])
            low, high = r.tempo_bpm
            room_for_cycles_s = spec.clip_s - _LEAD_S[1] - _FLAM_AHEAD_S
            low = min(max(low, r.cycle_beats * 60.0 / room_for_cycles_s), high)
            tempo_bpm = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))), 2)
            tempo_bpm = min(max(tempo_bpm, low), high)
            plans.append(
                ClipPlan(
                    clip_id=clip_id,
                    label=r.slug,
                    split="train" if index < first_valid else "valid" if index < first_valid + n_valid else "test",
                    player=player,
                    tempo_bpm=tempo_bpm,
                    tier=tier_names[index % len(tier_names)],
                    snr_db=float(rng.choice(SNRS_DB)),
                    room=str(rng.choice(sound.ROOMS)),
                    duration_s=spec.clip_s,
                    cycles=round(room_for_cycles_s / r.cycle_s(tempo_bpm), 3),
                    seed=seed,
                    player_seed=_seed(spec.seed, player),
                )
            )
    return tuple(plans)


def short_clips(plans: Iterable[ClipPlan]) -> tuple[ClipPlan, ...]:
    """The clips that hold less than one cycle of their rudiment."""
    return tuple(p for p in plans if p.cycles < 1.0)


def render(clip: ClipPlan) -> np.ndarray:
    """The clip's waveform: float32 (samples,) in [-1, 1] at 16 kHz."""
    r = rudiments.rudiment(clip.label)
    waveform, _ = render_pattern(
        r.strokes,
        cycle_ticks=r.cycle_ticks,
        ticks_per_beat=r.ticks_per_beat,
        tempo_bpm=clip.tempo_bpm,
        player_seed=clip.player_seed,
        tier=TIERS[clip.tier],
        room=clip.room,
        snr_db=clip.snr_db,
        seed=clip.seed,
        clip_s=clip.duration_s,
    )
    return waveform


def events(clip: ClipPlan) -> tuple[StrokeEvent, ...]:
    """The primary strokes of a clip as played: the ground truth of its waveform."""
    r = rudiments.rudiment(clip.label)
    played, _ = _perform(
        r.strokes,
        r.cycle_ticks,
        60.0 / clip.tempo_bpm / r.ticks_per_beat,
        TIERS[clip.tier],
        np.random.default_rng([clip.seed, 1]),
        clip.duration_s,
    )
    return played


def content_key(spec: SynthSpec) -> str:
    """32 hex digits that change whenever any clip of the data set does; used to name caches."""
    facts = {
        "synth": SYNTH_VERSION,
        "spec": asdict(spec),
        "tiers": {name: asdict(tier) for name, tier in TIERS.items()},
        "rudiments": [_as_recorded(r) for r in rudiments.RUDIMENTS],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _as_recorded(rudiment: rudiments.Rudiment) -> dict[str, Any]:
    """Under the names that content keys have used from the start: a key must not change with a name in the code."""
    facts = asdict(rudiment)
    facts["family"] = facts.pop("group")
    return facts


def render_pattern(
    strokes: Sequence[Stroke],
    *,
    cycle_ticks: int,
    ticks_per_beat: int,
    tempo_bpm: float,
    player_seed: int,
    tier: Tier,
    room: str,
    snr_db: float,
    seed: int,
    clip_s: float,
) -> tuple[np.ndarray, tuple[StrokeEvent, ...]]:
    """Render a cycle of strokes, repeated until the clip ends.

    Returns the waveform, float32 (samples,) in [-1, 1] at 16 kHz, and its primary strokes in order of time.
    """
    tick_s = 60.0 / tempo_bpm / ticks_per_beat
    played, blows = _perform(strokes, cycle_ticks, tick_s, tier, np.random.default_rng([seed, 1]), clip_s)
    rng = np.random.default_rng([seed, 2])
    samples = round(clip_s * sound.SAMPLE_RATE_HZ)
    dry = _strike(blows, sound.stroke_bank(player_seed), samples, rng)
    wet = sound.put_in_room(dry, room, int(rng.integers(1 << 16)))
    noise = sound.background(samples, int(rng.integers(4)), int(rng.integers(1 << 18)))
    power = float(np.mean(wet * wet))
    wet = wet + noise * np.float32(np.sqrt(power) * 10.0 ** (-snr_db / 20.0))
    wet[-80:] *= np.linspace(1.0, 0.0, 80, dtype=np.float32)
    peak_db = rng.uniform(-12.0, -1.0)
    wet *= np.float32(10.0 ** (peak_db / 20.0) / max(float(np.abs(wet).max()), 1e-9))
    return wet, played


_Blow = tuple[float, int, float]  # time in s, hand (0 is right), level in dB relative to the hardest


def _perform(
    strokes: Sequence[Stroke], cycle_ticks: int, tick_s: float, tier: Tier, rng: np.random.Generator, clip_s: float
) -> tuple[tuple[StrokeEvent, ...], list[_Blow]]:
    """Repeat a cycle as a player of that tier plays it: the primary strokes, and every blow on the head."""
    lead_s = float(rng.uniform(*_LEAD_S)) + (_FLAM_AHEAD_S if strokes[0].grace else 0.0)
    n = len(strokes)
    repeats = int(clip_s / (cycle_ticks * tick_s)) + 2
    ticks = np.array([s.tick for s in strokes], dtype=np.float64)
    grid = (ticks[None, :] + cycle_ticks * np.arange(repeats)[:, None]).ravel()
    steps = np.diff(grid)
    # The tempo drifts: a random walk that returns to the nominal tempo stretches each gap.
    walk = rng.standard_normal(steps.size)
    stretch, wander = np.empty(steps.size), 0.0
    for i in range(steps.size):
        wander = 0.98 * wander + tier.drift * walk[i] * np.sqrt(steps[i] / 24.0)
        stretch[i] = 1.0 + wander
    nominal_s = lead_s + np.concatenate(([0.0], np.cumsum(steps * stretch))) * tick_s
    gaps_s = np.append(np.diff(nominal_s), steps[-1] * tick_s)
    near_s = np.minimum(gaps_s, np.concatenate((gaps_s[:1], gaps_s[:-1])))
    late = np.clip(rng.standard_normal(grid.size), -2.5, 2.5) * (tier.jitter * np.minimum(near_s, 0.25) + 0.001)
    left = np.tile([s.hand == "L" for s in strokes], repeats)
    onset_s = np.maximum(nominal_s + late + left * tier.weak_hand_lag_s, 0.005)
    wobble_db = rng.standard_normal(grid.size) * tier.level_spread_db

    count = int(np.searchsorted(nominal_s, clip_s - 0.03))  # a blow in the last 30 ms would be inaudible
    played, blows = [], []
    for i in range(count):
        s, t = strokes[i % n], float(onset_s[i])
        hand = int(left[i])
        level_db = -2.0 if s.accent else -2.0 - tier.accent_db
        level_db += wobble_db[i] - (tier.weak_hand_db if left[i] else 0.0)
        level_db -= tier.diddle_drop_db if s.diddle == 2 else 0.0
        if s.kind == "buzz":
            blows += _buzz(t, float(gaps_s[i]), hand, level_db, rng)
        else:
            blows.append((t, hand, level_db))
        if s.grace:
            room_s = float(gaps_s[i - 1]) if i else lead_s
            blows += _grace(t, s, room_s, level_db, tier, rng)
        played.append(
            StrokeEvent(
                onset_s=t,
                gap_s=float(gaps_s[i]),
                hand=s.hand,
                accent=s.accent,
                flam=s.is_flam,
                drag=s.is_drag,
                buzz=s.kind == "buzz",
                index=i % n,
            )
        )
    return tuple(played), blows


def _grace(t: float, s: Stroke, room_s: float, level_db: float, tier: Tier, rng: np.random.Generator) -> list[_Blow]:
    """Grace strokes just before a primary one: soft, independent of the tempo, squeezed into a short gap."""
    ahead_s = min(tier.flam_s * float(np.exp(rng.normal(0.0, tier.flam_spread))), 0.45 * room_s)
    level_db = min(level_db, -6.0) - 5.0 + float(rng.normal(0.0, tier.level_spread_db))
    if len(s.grace) == 1:
        return [(max(t - ahead_s, 0.0), int(s.grace == "L"), level_db)]
    spread_s = min(1.15 * tier.flam_s * float(np.exp(rng.normal(0.0, tier.flam_spread))), 0.4 * room_s)
    first, second = (int(h == "L") for h in s.grace)
    return [(max(t - ahead_s - spread_s, 0.0), first, level_db), (max(t - ahead_s, 0.0), second, level_db - 1.0)]


def _buzz(t: float, gap_s: float, hand: int, level_db: float, rng: np.random.Generator) -> list[_Blow]:
    """A multiple bounce: the stick is pressed and rebounds faster and softer until the other hand takes over."""
    blows, at, bounce_s = [], t, float(rng.uniform(0.026, 0.034))
    while at < t + 0.95 * gap_s and len(blows) < 12:
        blows.append((at, hand, level_db - 1.6 * len(blows)))
        at += bounce_s
        bounce_s *= float(rng.uniform(0.9, 0.98))
    return blows


def _strike(blows: list[_Blow], bank: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Mix the strokes of a bank: float32 (samples,)."""
    out = np.zeros(samples + sound.STROKE_SAMPLES, dtype=np.float32)
    takes = rng.integers(sound.TAKES, size=len(blows))
    top = sound.VELOCITIES - 1
    for (t, hand, level_db), take in zip(blows, takes, strict=True):
        start = round(t * sound.SAMPLE_RATE_HZ)
        if start >= samples:
            continue
        level = min(max(top + round(level_db / sound.LEVEL_STEP_DB), 0), top)
        gain = np.float32(10.0 ** ((level_db + (top - level) * sound.LEVEL_STEP_DB) / 20.0))
        out[start : start + sound.STROKE_SAMPLES] += gain * bank[hand, level, take]
    return out[:samples]


@lru_cache(maxsize=4096)
def _seed(base: int, name: str) -> int:
    """A seed from a name. Unlike hash(), it is the same in every process."""
    return zlib.crc32(f"{base}/{name}".encode())
