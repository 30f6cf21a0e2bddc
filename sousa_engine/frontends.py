"""From waveforms to the log-mel frames a backbone was trained on, in batches and on any device. Imports torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sousa_engine.backbones.spec import FrontEndSpec
from sousa_engine.backbones.torchaudio_guard import import_torchaudio

import_torchaudio()

from torchaudio.compliance import kaldi  # noqa: E402

PRE_EMPHASIS = 0.97


def log_mel(waveforms: Tensor, spec: FrontEndSpec) -> Tensor:
    """Log-mel frames as AST saw them in pre-training, not yet normalised.

    waveforms: (batch, samples), float, in [-1, 1] at spec.sample_rate_hz. Returns (batch, frames, mel bins) float32 on
    the same device; frames as spec.frames says (no padding at the edges). Each clip's mean is taken off first.
    Raises DataError if the clips are shorter or longer than the backbone can take.
    Source: Gong et al. 2021, section 2.1: Kaldi's filter bank with a symmetric Hann window, 25 ms every 10 ms, without
    dither; equal to torchaudio.compliance.kaldi.fbank, which takes one clip at a time (tests/test_frontends.py).
    """
    spec.frames(waveforms.shape[-1])
    waveforms = waveforms.float()
    waveforms = waveforms - waveforms.mean(dim=-1, keepdim=True)
    frames = waveforms.unfold(-1, spec.frame_samples, spec.hop_samples)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    before = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)  # the first sample follows itself
    banks, window = _tables(spec, str(waveforms.device))
    spectrum = torch.fft.rfft((frames - PRE_EMPHASIS * before) * window, n=2 * banks.shape[0])
    power = spectrum.real.square() + spectrum.imag.square()
    with _full_precision():
        energies = power[..., :-1] @ banks
    return energies.clamp_(min=spec.floor).log_()


def normalise(features: Tensor, spec: FrontEndSpec) -> Tensor:
    """(x - mean) / (2 * std), the scale of the backbone's pre-training: about mean 0 and standard deviation 0.5."""
    return (features - spec.mean) / (2 * spec.std)


@functools.lru_cache(maxsize=8)
def _tables(spec: FrontEndSpec, device: str) -> tuple[Tensor, Tensor]:
    """Mel triangles (frequencies below half the sample rate, mel bins) and the window (frame samples)."""
    fft = 1 << (spec.frame_samples - 1).bit_length()
    banks, _ = kaldi.get_mel_banks(
        spec.mel_bins, fft, float(spec.sample_rate_hz), spec.low_hz, spec.high_hz, 100.0, -500.0, 1.0
    )
    window = torch.hann_window(spec.frame_samples, periodic=False)
    return banks.T.contiguous().to(device), window.to(device)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in true float32, whatever the network may use: the logarithm would show bfloat16."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)
