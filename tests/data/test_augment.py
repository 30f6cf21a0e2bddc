"""Augmentation: seeded, bounded, and different for every clip."""

from __future__ import annotations

import math

import pytest
import torch

from sousa_engine.core.config import AugmentConfig
from sousa_engine.data.augment import augment

FLOOR = -16.0
OFF = {"time_mask": 0.0, "mel_mask": 0.0, "shift": 0.0, "gain_db": 0.0}


def clips(batch=64, frames=100, mels=20):
    return torch.randn(batch, frames, mels, generator=torch.Generator().manual_seed(1)) - 5.0


def change(features, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return augment(features, AugmentConfig(**{**OFF, **settings}), floor=FLOOR, generator=generator)


def test_everything_off_changes_nothing():
    assert torch.equal(change(clips()), clips())


def test_the_same_generator_state_gives_the_same_batch_and_another_another():
    first, again, other = (change(clips(), seed, time_mask=0.1, shift=0.1, gain_db=6) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_input_is_left_as_it_was():
    features = clips()
    change(features, time_mask=0.3, mel_mask=0.3, shift=0.3, gain_db=6)
    assert torch.equal(features, clips())


def test_every_call_takes_the_same_draws_whatever_is_switched_on():
    states = []
    for settings in (OFF, {"time_mask": 0.2, "mel_mask": 0.2, "shift": 0.2, "gain_db": 6}):
        generator = torch.Generator().manual_seed(0)
        augment(clips(), AugmentConfig(**{**OFF, **settings}), floor=FLOOR, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_gain_is_decibels_of_power_and_one_number_a_clip():
    added = change(clips(), gain_db=6.0) - clips()
    per_clip = added.mean(dim=(1, 2))
    assert torch.allclose(added, per_clip[:, None, None].expand_as(added), atol=1e-4)
    limit = 6.0 * math.log(10) / 10
    assert per_clip.abs().max() <= limit and per_clip.max() > 0.8 * limit and per_clip.min() < -0.8 * limit


def test_gain_leaves_silence_silent_and_never_goes_below_it():
    features = clips()
    features[:, :10] = FLOOR
    features[:, 10:20] = FLOOR + 0.01
    louder = change(features, gain_db=24.0)
    assert (louder[:, :10] == FLOOR).all() and (louder >= FLOOR).all()


def test_shift_moves_frames_both_ways_and_fills_with_the_floor():
    frames = torch.arange(100.0)[None, :, None].expand(256, 100, 4).clone()
    moved = change(frames, shift=0.1)
    by = []
    for clip in moved[:, :, 0]:
        inside = clip != FLOOR
        steps = (torch.arange(100) - clip)[inside]
        assert (steps == steps[0]).all() and inside.sum() == 100 - abs(int(steps[0]))
        by.append(int(steps[0]))
    assert min(by) == -10 and max(by) == 10


@pytest.mark.parametrize(("name", "dim", "length"), [("time_mask", 1, 100), ("mel_mask", 2, 20)])
def test_a_mask_is_one_run_of_at_most_its_share_with_the_mean_of_its_clip(name, dim, length):
    features = clips(batch=512)
    masked = change(features, **{name: 0.25})
    hidden = (masked != features).any(dim=3 - dim)
    widths = hidden.sum(dim=1)
    runs = (hidden[:, 1:] & ~hidden[:, :-1]).sum(dim=1) + hidden[:, 0]
    assert runs.max() == 1 and widths.max() == 0.25 * length and widths.min() == 0
    assert hidden[:, 0].any() and hidden[:, -1].any()
    means = features.mean(dim=(1, 2))[:, None, None].expand_as(features)
    assert torch.allclose(masked[masked != features], means[masked != features])
