"""The pre-training clips of the minis: random stroke patterns, rendered, as front-end features with their labels."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import stroke_patterns
from benchmarks.minis import CLIP_S, Recipe, frames, variant
from sousa_engine.data import audio, synth
from sousa_engine.data import strokes as sound

MAX_EVENTS = 72
FLAGS = ("right", "accent", "flam", "drag", "buzz")
EVENT_FIELDS = ("onset_s", "ratio", *FLAGS)  # ratio: the gap to the next stroke relative to the shortest of the pattern


def make_corpus(recipe: Recipe, folder: Path, processes: int) -> None:
    """features.f16 (clips, frames, mels) and events.f32 (clips, MAX_EVENTS, fields), in order of pattern."""
    if (folder / "corpus.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    patterns = stroke_patterns.draw_patterns(recipe.families, recipe.seed)
    clips = len(patterns) * recipe.renderings
    for name, dtype, shape in _arrays(recipe, clips):
        np.memmap(folder / name, dtype=dtype, mode="w+", shape=shape).flush()
    rng = np.random.default_rng([recipe.seed, 1])
    player = rng.integers(recipe.players, size=clips)
    order = np.argsort(player, kind="stable")  # clips of one player together: its stroke bank is built once
    started = time.time()
    workers = [
        multiprocessing.Process(target=_fill, args=(recipe, folder, patterns, player, share))
        for share in np.array_split(order, processes)
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
        if w.exitcode:
            sys.exit(f"a corpus process ended with {w.exitcode}")
    name, dtype, shape = _arrays(recipe, clips)[0]
    features = np.memmap(folder / name, dtype=dtype, mode="r", shape=shape)
    some = features[:: max(1, clips // 2000)].astype(np.float64)
    facts = {
        "variant": recipe.variant,
        "clips": clips,
        "patterns": len(patterns),
        "mean": float(some.mean()),
        "std": float(some.std()),
        "family": [p.family for p in patterns],
        "period": [_periods(p) for p in patterns],
        "seconds": time.time() - started,
    }
    (folder / "corpus.json").write_text(json.dumps(facts))
    print(f"corpus: {clips} clips in {facts['seconds']:.0f} s, mean {facts['mean']:.4f}, std {facts['std']:.4f}")


def _arrays(recipe: Recipe, clips: int):
    return (
        ("features.f16", np.float16, (clips, frames(recipe), variant(recipe).front_end.mel_bins)),
        ("events.f32", np.float32, (clips, MAX_EVENTS, len(EVENT_FIELDS))),
    )


def _fill(recipe: Recipe, folder: Path, patterns, player: np.ndarray, share: np.ndarray) -> None:
    import torch

    from sousa_engine.frontends import log_mel

    torch.set_num_threads(1)
    clips = len(player)
    features, table = (np.memmap(folder / n, dtype=d, mode="r+", shape=s) for n, d, s in _arrays(recipe, clips))
    spec = variant(recipe).front_end
    for start in range(0, len(share), 64):
        batch = share[start : start + 64]
        waveforms = np.empty((len(batch), round(CLIP_S * spec.sample_rate_hz)), dtype=np.float32)
        for row, clip in enumerate(batch):
            heard, table[clip] = _render(recipe, patterns[clip // recipe.renderings], int(player[clip]), int(clip))
            waveforms[row] = audio.resample(heard, sound.SAMPLE_RATE_HZ, spec.sample_rate_hz)
        features[batch] = log_mel(torch.from_numpy(waveforms), spec).numpy().astype(np.float16)
    features.flush()
    table.flush()


def _render(recipe: Recipe, pattern, player: int, clip: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([recipe.seed, 2, clip])
    shortest = min(pattern.gaps)
    high = min(190.0, 16.0 * 60.0 * shortest / stroke_patterns.TICKS_PER_BEAT)
    low = max(50.0, pattern.cycle_ticks / stroke_patterns.TICKS_PER_BEAT * 60.0 / 3.8)
    tempo_bpm = float(np.exp(rng.uniform(np.log(min(low, high)), np.log(high))))
    waveform, played = synth.render_pattern(
        pattern.strokes,
        cycle_ticks=pattern.cycle_ticks,
        ticks_per_beat=stroke_patterns.TICKS_PER_BEAT,
        tempo_bpm=tempo_bpm,
        player_seed=recipe.seed * 1000 + player,
        tier=synth.TIERS[str(rng.choice(tuple(synth.TIERS)))],
        room=str(rng.choice(sound.ROOMS)),
        snr_db=float(rng.choice(synth.SNRS_DB)),
        seed=int(rng.integers(1 << 31)),
        clip_s=CLIP_S,
    )
    table = np.full((MAX_EVENTS, len(EVENT_FIELDS)), -1.0, dtype=np.float32)
    for row, e in enumerate(played[:MAX_EVENTS]):
        ratio = pattern.gaps[e.index] / shortest
        table[row] = (e.onset_s, ratio, e.hand == "R", e.accent, e.flam, e.drag, e.buzz)
    return waveform, table


def _periods(pattern) -> tuple[int, int]:
    """Number of strokes after which the pattern repeats, without regard to the hands and with it."""
    heard = [(g, s.accent, len(s.grace), s.kind) for g, s in zip(pattern.gaps, pattern.strokes, strict=True)]
    played = [(h, s.hand) for h, s in zip(heard, pattern.strokes, strict=True)]
    return stroke_patterns.period(heard), stroke_patterns.period(played)


class Batches:
    """Batches of complete families, two renderings of each pattern. They depend on the step number only."""

    def __init__(self, recipe: Recipe, folder: Path):
        import torch

        self.recipe, self.torch = recipe, torch
        self.facts = json.loads((folder / "corpus.json").read_text())
        self.features, self.events = (
            np.memmap(folder / n, dtype=d, mode="r", shape=s) for n, d, s in _arrays(recipe, self.facts["clips"])
        )
        self.periods = np.array(self.facts["period"])
        self.centre = normalisation(recipe, self.facts)

    def at(self, step: int, held_out: bool = False) -> dict:
        torch, recipe = self.torch, self.recipe
        rng = np.random.default_rng([recipe.seed, 3, step, int(held_out)])
        families, kept = self.facts["patterns"] // 4, 32
        pick = rng.choice(kept, recipe.batch // 8, replace=False)
        if not held_out:
            pick = kept + rng.choice(families - kept, recipe.batch // 8, replace=False)
        pattern = np.repeat((pick[:, None] * 4 + np.arange(4)).ravel(), 2)
        take = np.stack([rng.permutation(recipe.renderings)[:2] for _ in range(len(pattern) // 2)]).ravel()
        clips = pattern * recipe.renderings + take
        x = torch.from_numpy(self.features[clips].astype(np.float32))
        mean, std = self.facts["mean"], self.facts["std"]
        if not held_out:
            x = x + torch.from_numpy(rng.uniform(-0.3 * std, 0.3 * std, (len(clips), 1, 1)).astype(np.float32))
            for i in range(len(clips)):  # mask a band of mels, as in SpecAugment
                if rng.random() < 0.3:
                    low = int(rng.integers(x.shape[2] - 10))
                    x[i, :, low : low + int(rng.integers(1, 10))] = mean
        return {
            "x": (x - self.centre[0]) / (2.0 * self.centre[1]),
            "events": torch.from_numpy(self.events[clips]),
            "periods": torch.from_numpy(self.periods[pattern]),
            "pattern": torch.from_numpy(pattern),
        }


def normalisation(recipe: Recipe, facts: dict) -> tuple[float, float]:
    """Mean and standard deviation for the front end: those of the corpus, unless the network has its own."""
    spec = variant(recipe).front_end
    return (spec.mean, spec.std) if spec.kind == "htsat" else (facts["mean"], facts["std"])
