"""What is heard in a pattern whose every stroke is known, and that it does not depend on tempo or level."""

from __future__ import annotations

import numpy as np
import pytest

from sousa_engine.core import rudiments
from sousa_engine.data import rhythm, synth

RATE_HZ = rhythm.SAMPLE_RATE_HZ


def played(slug, *, tempo_bpm=90.0, tier="advanced", player_seed=3, room="dry", snr_db=40.0, seed=1):
    """A rudiment of the sheet as somebody plays it: its waveform, and what was struck."""
    r = rudiments.rudiment(slug)
    return synth.render_pattern(
        r.strokes, cycle_ticks=r.cycle_ticks, ticks_per_beat=r.ticks_per_beat, tempo_bpm=tempo_bpm,
        player_seed=player_seed, tier=synth.TIERS[tier], room=room, snr_db=snr_db, seed=seed, clip_s=4.0,
    )  # fmt: skip


def strokes_of(slug, **how):
    waveform, events = played(slug, **how)
    return rhythm.strokes(rhythm.hear(waveform)), events


def mean_pattern(slug, block, **how):
    """One block of figures, averaged over three takes."""
    takes = [rhythm.blocks(rhythm.hear(played(slug, seed=seed, **how)[0]))[block] for seed in (1, 2, 3)]
    return np.mean(takes, axis=0)


@pytest.mark.parametrize("slug", ["single-paradiddle", "flam-accent", "single-ratamacue", "five-stroke-roll"])
def test_every_stroke_is_heard_where_it_falls(slug):
    heard, events = strokes_of(slug)
    onsets = np.array([event.onset_s for event in events])
    assert len(heard.onset_s) == len(onsets)
    assert np.abs(heard.onset_s - onsets).max() < 0.006


def test_a_paradiddle_and_single_strokes_at_the_same_moments_give_the_same_intervals():
    times = np.arange(24) * 0.15
    both = []
    for hands in ("RLRR", "RLRL"):
        cycle = tuple(rudiments.Stroke(tick=6 * i, hand=hand) for i, hand in enumerate(hands))
        waveform, _ = synth.render_pattern(
            cycle, cycle_ticks=24, ticks_per_beat=24, tempo_bpm=100.0, player_seed=3, tier=synth.TIERS["advanced"],
            room="dry", snr_db=40.0, seed=1, clip_s=float(times[-1]),
        )  # fmt: skip
        both.append(rhythm.strokes(rhythm.hear(waveform)))
    first, second = (np.diff(one.onset_s) for one in both)
    assert len(first) == len(second) and np.abs(first - second).max() < 0.004


def test_a_flam_has_one_grace_stroke_and_a_drag_one_or_two():
    flams, events = strokes_of("flam-accent")
    assert flams.before.tolist() == [float(event.flam) for event in events]
    drags, events = strokes_of("lesson-25")
    dragged = np.array([event.drag for event in events], dtype=bool)
    assert ((drags.before > 0) == dragged).all() and set(drags.before[dragged]) == {1.0, 2.0}  # two may fall into one
    assert not drags.after.any()


def test_grace_strokes_leave_short_gaps_and_plain_strokes_none():
    gaps = {slug: np.diff(rhythm.hear(played(slug)[0]).onset_s) for slug in ("flam", "single-stroke-four")}
    assert np.sum(gaps["flam"] < 0.05) == len(strokes_of("flam")[1])
    assert gaps["single-stroke-four"].min() > 0.1


def test_a_buzz_rings_out_in_bounces():
    buzz, _ = strokes_of("multiple-bounce-roll", tempo_bpm=75.0)
    plain, _ = strokes_of("single-stroke-roll", tempo_bpm=75.0)
    assert buzz.after.mean() > 0.5 and not plain.after.any()


@pytest.mark.parametrize("slug", ["single-paradiddle", "flamacue", "nine-stroke-roll"])
def test_intervals_and_groups_do_not_depend_on_the_tempo(slug):
    for block in ("intervals", "groups"):
        slow, fast = (mean_pattern(slug, block, tempo_bpm=tempo) for tempo in (75.0, 110.0))
        other = mean_pattern("single-ratamacue", block, tempo_bpm=90.0)
        assert np.linalg.norm(slow - fast) < 0.5 * np.linalg.norm(slow - other)


def test_nothing_depends_on_the_level():
    waveform, _ = played("flam-accent", snr_db=30.0)
    loud, soft = (rhythm.pattern(waveform * gain) for gain in (1.0, 0.05))
    assert np.allclose(loud, soft, atol=1e-3)


def test_accents_are_found_as_many_strokes_apart_as_they_are_played():
    groups = mean_pattern("double-paradiddle", "groups", tempo_bpm=80.0)
    between_accents = groups[18:36]  # after the 18 places of group lengths
    assert between_accents.argmax() + 1 == 6


def test_hands_show_in_the_timbre():
    """Of single strokes every second is alike; of double strokes less so."""
    singles, doubles = (
        mean_pattern(slug, "again", tempo_bpm=60.0)[60:62] for slug in ("single-stroke-roll", "double-stroke-open-roll")
    )
    assert singles[1] > singles[0] + 0.1 and np.diff(singles) > np.diff(doubles) + 0.05


@pytest.mark.parametrize("samples", [1_600, 64_000])
def test_silence_and_very_short_clips_have_finite_figures(samples):
    one_stroke = np.zeros(samples, dtype=np.float32)
    one_stroke[800:1_000] = np.random.default_rng(0).normal(0, 0.3, 200)
    for waveform in (np.zeros(samples, dtype=np.float32), one_stroke):
        assert np.isfinite(rhythm.pattern(waveform)).all() and np.isfinite(rhythm.pooled(waveform)).all()
    assert len(rhythm.strokes(rhythm.hear(one_stroke)).onset_s) == 1
