"""Random changes to a batch of features that preserve the label. Batched torch; no loop over clips."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sousa_engine.core.config import AugmentConfig

DB_TO_LN = math.log(10) / 10
"""A gain of 1 dB in power log-mel, which is a natural logarithm."""


def augment(
    features: Tensor, config: AugmentConfig, *, floor: float, ln_units: float = 1.0, generator: torch.Generator
) -> Tensor:
    """Shift, gain, time mask and mel mask, drawn separately for every clip.

    features: (batch, frames, mels) raw log-mel, float32; not modified. floor: the feature value of silence; it pads
    shifted clips and limits the gain. ln_units: 1 for natural logarithms, 4.34 for decibels. Masks are filled with the
    clip's mean. Every call takes the same number of draws from `generator`, whatever the settings. Returns the same
    shape. Masks follow Park et al. 2019 (SpecAugment): one of each kind, with a width uniform up to its limit.
    """
    batch, frames, mels = features.shape
    draws = torch.rand(6, batch, generator=generator, device=generator.device).to(features.device)
    shift_draw, gain_draw, time_width, time_start, mel_width, mel_start = draws
    out = features
    if config.gain_db:
        out = _gain(out, (2 * gain_draw - 1) * config.gain_db * DB_TO_LN * ln_units, floor)
    if config.shift:
        reach = round(config.shift * frames)
        out = _shift(out, ((2 * reach + 1) * shift_draw).long() - reach, floor)
    if config.time_mask or config.mel_mask:
        hidden = _span(time_width, time_start, config.time_mask, frames)[:, :, None]
        hidden = hidden | _span(mel_width, mel_start, config.mel_mask, mels)[:, None, :]
        out = torch.where(hidden, out.mean(dim=(1, 2), keepdim=True), out)
    return out


def _gain(features: Tensor, ln_units: Tensor, floor: float) -> Tensor:
    louder = (features + ln_units[:, None, None]).clamp_min(floor)
    return torch.where(features <= floor, features, louder)  # silence stays silent


def _shift(features: Tensor, by: Tensor, floor: float) -> Tensor:
    """Move each clip by a number of frames, later if positive; frames that leave the clip are lost."""
    frames = features.shape[1]
    source = torch.arange(frames, device=features.device)[None, :] - by[:, None]
    moved = features.gather(1, source.clamp(0, frames - 1)[:, :, None].expand_as(features))
    return torch.where(((source >= 0) & (source < frames))[:, :, None], moved, floor)


def _span(width_draw: Tensor, start_draw: Tensor, limit: float, length: int) -> Tensor:
    """(batch, length) bool: one stretch of True in each row, at most limit * length wide."""
    widest = int(limit * length)
    width = ((widest + 1) * width_draw).long()
    start = ((length - width + 1) * start_draw).long()
    place = torch.arange(length, device=width.device)[None, :]
    return (place >= start[:, None]) & (place < (start + width)[:, None])
