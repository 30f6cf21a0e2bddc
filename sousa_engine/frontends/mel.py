"""From waveforms to the log-mel frames that a backbone was trained on, in batches, on any device. Imports torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from sousa_engine.frontends.spec import FrontEndSpec

PRE_EMPHASIS = 0.97


def log_mel(waveforms: Tensor, spec: FrontEndSpec) -> Tensor:
    """Log-mel frames as a backbone saw them in pre-training, not yet normalised.

    waveforms: (batch, samples), float, in [-1, 1] at spec.sample_rate_hz. Returns (batch, frames, mel bins) on the same
    device, float32 (float64 for waveforms in float64), with spec.frames(samples) frames. Differentiable. Raises
    DataError if the clips are shorter or longer than the backbone accepts.
    Sources, by spec.kind: "kaldi-fbank": Gong et al. 2021, section 2.1, and Chen et al. 2022 (BEATs): Kaldi's filter
    bank without dither, equal to torchaudio.compliance.kaldi.fbank, which takes one clip at a time; "efficientat":
    Schmid et al. 2023, Kaldi's triangles on a centred power spectrum; "htsat": Chen et al. 2022 (HTS-AT), librosa's
    log-mel in decibels. Equal to the output of the authors' code (tests/frontends/test_mel.py, tests/parity).
    """
    spec.frames(waveforms.shape[-1])
    waveforms = waveforms.to(torch.promote_types(waveforms.dtype, torch.float32))
    if spec.remove_mean:
        waveforms = waveforms - waveforms.mean(dim=-1, keepdim=True)
    if spec.scale != 1.0:
        waveforms = waveforms * spec.scale
    banks, window = (table.to(waveforms.dtype) for table in tables(spec, str(waveforms.device)))
    power = _KINDS[spec.kind](waveforms, window, spec)
    with _full_precision():
        energies = power[..., : len(banks)] @ banks
    if spec.kind == "efficientat":
        return (energies + spec.floor).log()
    energies = energies.clamp(min=spec.floor)
    return 10 * energies.log10() if spec.kind == "htsat" else energies.log()


def normalise(features: Tensor, spec: FrontEndSpec) -> Tensor:
    """(x - mean) / (2 * std), as in the backbone's pre-training: mean about 0, standard deviation about 0.5."""
    return (features - spec.mean) / (2 * spec.std)


def _kaldi_power(waveforms: Tensor, window: Tensor, spec: FrontEndSpec) -> Tensor:
    frames = waveforms.unfold(-1, spec.frame_samples, spec.hop_samples)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    before = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)  # the first sample counts as its own predecessor
    spectrum = torch.fft.rfft((frames - PRE_EMPHASIS * before) * window, n=spec.fft_samples)
    return spectrum.real.square() + spectrum.imag.square()


def _efficientat_power(waveforms: Tensor, window: Tensor, spec: FrontEndSpec) -> Tensor:
    return _centred_power(waveforms[..., 1:] - PRE_EMPHASIS * waveforms[..., :-1], window, spec)


def _centred_power(waveforms: Tensor, window: Tensor, spec: FrontEndSpec) -> Tensor:
    """Power (batch, frames, frequencies) of frames centred on every hop; the clip is mirrored at its ends."""
    half = spec.fft_samples // 2
    if waveforms.shape[-1] <= half:  # mirroring needs more samples than it adds
        waveforms = torch.nn.functional.pad(waveforms, (0, half + 1 - waveforms.shape[-1]))
    spectrum = torch.stft(
        waveforms, spec.fft_samples, hop_length=spec.hop_samples, win_length=spec.frame_samples, window=window,
        center=True, pad_mode="reflect", return_complex=True,
    )  # fmt: skip
    return (spectrum.real.square() + spectrum.imag.square()).mT


_KINDS = {"kaldi-fbank": _kaldi_power, "efficientat": _efficientat_power, "htsat": _centred_power}


@functools.lru_cache(maxsize=8)
def tables(spec: FrontEndSpec, device: str) -> tuple[Tensor, Tensor]:
    """Mel triangles (frequencies, mel bins) and the window (frame samples), in float32. Kept for the next call."""
    with torch.inference_mode(False):  # else no gradient could pass once features had been computed
        if spec.kind == "htsat":
            import librosa

            sizes = {"sr": spec.sample_rate_hz, "n_fft": spec.fft_samples, "n_mels": spec.mel_bins}
            banks = torch.from_numpy(librosa.filters.mel(**sizes, fmin=spec.low_hz, fmax=spec.high_hz))
        else:
            rate_hz = float(spec.sample_rate_hz)
            banks, _ = kaldi.get_mel_banks(
                spec.mel_bins, spec.fft_samples, rate_hz, spec.low_hz, spec.high_hz, 100.0, -500.0, 1.0
            )
        window = torch.hann_window(spec.frame_samples, periodic=spec.kind == "htsat")
        if spec.window == "povey":
            window = window.pow(0.85)
        return banks.T.contiguous().to(device), window.to(device)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in true float32, whatever the network uses: bfloat16's error would show in the logarithm."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)
