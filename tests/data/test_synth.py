import hashlib
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from sousa_engine.core.errors import DataError
from sousa_engine.core.rudiments import RUDIMENTS, rudiment
from sousa_engine.data import strokes as sound
from sousa_engine.data import synth

TINY = synth.plan(synth.PRESETS["tiny"])


def clips_of(slug):
    return [c for c in TINY if c.label == slug]


def clean(clip, **changes):
    """The clip without noise or room, played by the best tier, so that its strokes can be measured."""
    return replace(clip, snr_db=90.0, room="dry", tier="advanced", **changes)


@pytest.mark.parametrize("name", synth.PRESETS)
def test_every_class_is_in_every_split(name):
    spec = synth.PRESETS[name]
    seen = defaultdict(int)
    for c in synth.plan(spec):
        seen[c.label, c.split] += 1
    assert len(seen) == 40 * 3
    assert sum(seen.values()) == 40 * spec.clips_per_class


def test_tiny_has_16_4_5_clips_a_class():
    for split, n in (("train", 16), ("valid", 4), ("test", 5)):
        assert all(sum(c.split == split for c in clips_of(r.slug)) == n for r in RUDIMENTS)


@pytest.mark.parametrize("name", synth.PRESETS)
def test_no_player_is_in_two_splits(name):
    splits = defaultdict(set)
    for c in synth.plan(synth.PRESETS[name]):
        splits[c.player].add(c.split)
    assert all(len(s) == 1 for s in splits.values())


def test_players_of_two_presets_are_different_people():
    small = {c.player_seed for c in synth.plan(synth.PRESETS["small"])}
    assert not small & {c.player_seed for c in TINY}


def test_tempo_stays_within_the_rudiments_range():
    for c in TINY:
        low, high = rudiment(c.label).tempo_bpm
        assert low <= c.tempo_bpm <= high, c.clip_id


def test_one_cycle_fits_into_every_clip_of_the_presets():
    for spec in synth.PRESETS.values():
        assert synth.short_clips(synth.plan(spec)) == ()


def test_clips_too_short_for_a_cycle_are_kept_and_reported():
    plans = synth.plan(synth.SynthSpec(name="brief", clips_per_class=3, players=3, clip_s=2.0))
    short = synth.short_clips(plans)
    assert len(plans) == 120
    assert "seventeen-stroke-roll" in {c.label for c in short}
    assert "flam-tap" not in {c.label for c in short}
    assert all(c.cycles < 1.0 and c.tempo_bpm == rudiment(c.label).tempo_bpm[1] for c in short)


def test_a_clip_is_the_same_bits_in_any_process_and_order():
    ids = [TINY[0].clip_id, TINY[577].clip_id]
    code = (
        "import hashlib, sys; from sousa_engine.data import synth\n"
        "by = {c.clip_id: c for c in synth.plan(synth.PRESETS['tiny'])}\n"
        "for i in reversed(sys.argv[1:]): print(i, hashlib.sha256(synth.render(by[i]).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code, *ids], capture_output=True, text=True, check=True)
    elsewhere = dict(line.split() for line in done.stdout.splitlines())
    for clip in (TINY[0], TINY[577]):
        assert hashlib.sha256(synth.render(clip).tobytes()).hexdigest() == elsewhere[clip.clip_id]


def test_waveforms_are_float32_within_full_scale():
    for c in TINY[::50]:
        waveform = synth.render(c)
        assert waveform.shape == (64_000,) and waveform.dtype == np.float32
        assert np.isfinite(waveform).all()
        assert 0.2 < np.abs(waveform).max() <= 1.0


def test_seed_changes_every_clip_and_the_content_key():
    other = replace(synth.PRESETS["tiny"], seed=1)
    assert synth.content_key(other) != synth.content_key(synth.PRESETS["tiny"])
    assert not np.array_equal(synth.render(synth.plan(other)[0]), synth.render(TINY[0]))


@pytest.mark.parametrize(
    ("preset", "key"),
    [
        ("micro", "e40e04b541f8966148a42b7224b5ebc0"),
        ("tiny", "52533df41728a632053f63188c4e16c4"),
        ("small", "d3470afa4fa0c214dbbd469cac4dbd1b"),
        ("medium", "f6061261ec448a2810c3dc482e5d1ae2"),
    ],
)
def test_embedded_sets_keep_their_content_key_whatever_the_code_calls_its_parts(preset, key):
    """Checkpoints and caches are found by it. Another key is right only where other sounds are: SYNTH_VERSION."""
    assert synth.content_key(synth.PRESETS[preset]) == key


def test_content_key_follows_what_is_heard(monkeypatch):
    spec = synth.PRESETS["tiny"]
    before = synth.content_key(spec)
    assert before == synth.content_key(replace(spec)) and len(before) == 32
    assert synth.content_key(replace(spec, clip_s=3.0)) != before
    monkeypatch.setattr(synth, "SYNTH_VERSION", synth.SYNTH_VERSION + 1)
    assert synth.content_key(spec) != before


def test_sound_begins_where_the_events_say():
    for c in clips_of("flam-accent")[:3] + clips_of("six-stroke-roll")[:3]:
        waveform = np.abs(synth.render(clean(c)))
        first_heard_s = np.argmax(waveform > 0.02 * waveform.max()) / 16_000
        first_event_s = synth.events(clean(c))[0].onset_s
        ahead_s = 0.06 if c.label == "flam-accent" else 0.002
        assert first_event_s - ahead_s <= first_heard_s <= first_event_s + 0.004


def test_events_repeat_the_rudiments_strokes():
    clip = clips_of("single-paradiddle")[0]
    played = synth.events(clip)
    sticking = "RLRRLRLL"
    assert "".join(e.hand for e in played) == (sticking * 9)[: len(played)]
    assert [e.onset_s for e in played] == sorted(e.onset_s for e in played)
    nominal_s = 60.0 / clip.tempo_bpm / 4
    assert np.median(np.diff([e.onset_s for e in played])) == pytest.approx(nominal_s, rel=0.1)


def energy_around(waveform, t, ahead_s=0.0, length_s=0.02):
    start = max(round((t - ahead_s) * 16_000), 0)
    return float(np.sum(waveform[start : start + round(length_s * 16_000)] ** 2))


def test_accents_are_louder_than_taps():
    clip = clean(clips_of("single-paradiddle")[2])
    waveform = synth.render(clip)
    loud = [energy_around(waveform, e.onset_s) for e in synth.events(clip) if e.accent]
    soft = [energy_around(waveform, e.onset_s) for e in synth.events(clip) if not e.accent]
    assert min(loud) > 2.0 * np.median(soft)


def test_a_flam_puts_sound_before_its_stroke_and_a_drag_more():
    def before(slug):
        clip = clean(clips_of(slug)[1], tempo_bpm=80.0, player_seed=5)
        waveform = synth.render(clip)
        return np.median([energy_around(waveform, e.onset_s, 0.07, 0.069) for e in synth.events(clip)[1:-1]])

    tap = before("single-stroke-four")
    assert before("flam") > 3.0 * tap
    assert before("drag") > before("flam")


def test_a_beginner_is_less_even_than_an_advanced_player():
    def unevenness(tier):
        gaps = []
        for c in clips_of("single-stroke-roll"):
            onsets = [e.onset_s for e in synth.events(replace(c, tier=tier))]
            gap = np.diff(onsets)
            gaps.append(np.std(gap) / np.mean(gap))
        return np.mean(gaps)

    assert unevenness("beginner") > 1.4 * unevenness("intermediate")
    assert unevenness("intermediate") > 1.3 * unevenness("advanced")


def test_noise_is_as_strong_as_the_snr_says():
    clip = clean(clips_of("drag")[0])
    signal = synth.render(clip)
    noisy = synth.render(replace(clip, snr_db=12.0))
    scale = np.dot(signal, noisy) / np.dot(signal, signal)
    noise = noisy - scale * signal
    snr_db = 10.0 * np.log10(np.mean((scale * signal) ** 2) / np.mean(noise**2))
    assert snr_db == pytest.approx(12.0, abs=0.5)


def test_rooms_ring_longer_than_a_dry_drum():
    clip = clean(clips_of("flam")[0], tempo_bpm=60.0)
    last_s = synth.events(clip)[1].onset_s + 0.4

    def tail(room):
        return energy_around(synth.render(replace(clip, room=room)), last_s, length_s=0.2)

    assert tail("hall") > 3.0 * tail("studio") > 0.0
    assert tail("studio") > 3.0 * tail("dry")


def test_hands_differ_in_timbre_for_every_player():
    for seed in range(12):
        bank = sound.stroke_bank(seed)
        spectra = np.abs(np.fft.rfft(bank[:, 5], axis=-1)) ** 2
        shape = spectra / spectra.sum(-1, keepdims=True)
        bands = shape.reshape(2, sound.TAKES, -1)[..., :1800].reshape(2, sound.TAKES, 36, 50).sum(-1)
        between = np.abs(bands[0].mean(0) - bands[1].mean(0)).sum()
        within = np.abs(bands - bands.mean(1, keepdims=True)).sum(-1).mean()
        assert between > within, seed


def test_harder_blows_are_brighter():
    bank = sound.stroke_bank(3)[0]
    power = np.abs(np.fft.rfft(bank, axis=-1)) ** 2
    hz = np.fft.rfftfreq(sound.STROKE_SAMPLES, 1 / 16_000)
    centroid = ((power * hz).sum(-1) / power.sum(-1)).mean(-1)
    assert centroid[7] > centroid[4] > centroid[1]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"players": 2}, "players"),
        ({"clips_per_class": 10}, "clips_per_class"),
        ({"clip_s": 9.0}, "clip_s"),
        ({"sample_rate_hz": 44_100}, "sample_rate_hz"),
    ],
)
def test_impossible_spec_is_refused_with_the_fields_name(changes, word):
    with pytest.raises(DataError, match=word):
        replace(synth.PRESETS["tiny"], **changes)


def test_importing_the_synthesiser_leaves_torch_out():
    code = "import sys, sousa_engine.data.synth; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
