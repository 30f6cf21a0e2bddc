import math
import subprocess
import sys

import pytest
import torch
from parity.oracle import Oracle

from sousa_engine import backbones, frontends
from sousa_engine.backbones.torchaudio_guard import import_torchaudio
from sousa_engine.errors import DataError

import_torchaudio()

from torchaudio.compliance import kaldi  # noqa: E402

SPEC = backbones.variant("ast-base").front_end


@pytest.fixture(scope="module")
def oracle():
    return Oracle("ast_base_audioset")


@pytest.fixture
def noise():
    return torch.randn(3, 32000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.3], [0.01], [1e-5]])


@pytest.mark.parametrize("clip", ["A", "B"])
def test_filter_bank_and_normalised_input_equal_the_authors(oracle, clip):
    features = frontends.log_mel(torch.from_numpy(oracle.clip(clip))[None], SPEC)
    assert features.shape[1:] == tuple(oracle.info["outputs"][f"{clip}/fbank_raw"]["shape"])
    assert oracle.difference(f"{clip}/fbank_raw", features[0]) <= oracle.tolerance(f"{clip}/fbank_raw")
    padded = torch.nn.functional.pad(features, (0, 0, 0, 1024 - features.shape[1]))
    normalised = frontends.normalise(padded, SPEC)[0]
    assert oracle.difference(f"{clip}/input_normalised", normalised) <= oracle.tolerance(f"{clip}/input_normalised")


def test_another_window_would_be_noticed(oracle, monkeypatch):
    povey = torch.hann_window(SPEC.frame_samples, periodic=False) ** 0.85
    monkeypatch.setattr(frontends, "_tables", lambda *a, own=frontends._tables: (own(*a)[0], povey))
    features = frontends.log_mel(torch.from_numpy(oracle.clip("B"))[None], SPEC)
    assert oracle.difference("B/fbank_raw", features[0]) > 10 * oracle.tolerance("B/fbank_raw")


@pytest.mark.parametrize("name", ["ast-base", "ast-mini"])
def test_a_batch_equals_torchaudios_kaldi_clip_by_clip(name, noise):
    spec = backbones.variant(name).front_end
    features = frontends.log_mel(noise, spec)
    for clip, found in zip(noise[:, None], features, strict=True):
        wanted = kaldi.fbank(
            clip - clip.mean(),
            htk_compat=True,
            sample_frequency=spec.sample_rate_hz,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=spec.mel_bins,
            dither=0.0,
            frame_shift=spec.hop_ms,
        )
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_silence_is_the_floor_not_minus_infinity():
    features = frontends.log_mel(torch.zeros(1, 16000), SPEC)
    torch.testing.assert_close(features, torch.full_like(features, math.log(SPEC.floor)))


def test_spec_foretells_the_number_of_frames(noise):
    for samples in (16000, 16159, 16160, 32000):
        assert frontends.log_mel(noise[:, :samples], SPEC).shape == (3, SPEC.frames(samples), SPEC.mel_bins)


@pytest.mark.parametrize(("samples", "word"), [(0, "short"), (399, "short"), (2799, "short"), (960_400, "long")])
def test_a_clip_the_backbone_cannot_take_is_refused_with_its_length(samples, word):
    with pytest.raises(DataError, match=f"too {word}.*0.175 to 60.02 s"):
        frontends.log_mel(torch.zeros(1, samples), SPEC)


def test_the_shortest_and_the_longest_clip_pass():
    assert frontends.log_mel(torch.zeros(1, 2800), SPEC).shape[1] == SPEC.min_frames
    assert frontends.log_mel(torch.zeros(1, 960_399), SPEC).shape[1] == SPEC.max_frames


def test_features_do_not_depend_on_the_matmul_precision_of_training(noise):
    wanted = frontends.log_mel(noise, SPEC)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = frontends.log_mel(noise, SPEC)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, wanted)


def test_torchaudio_imports_beside_a_cpu_only_torch_and_beside_any_other():
    code = """
from sousa_engine.backbones.torchaudio_guard import import_torchaudio
torchaudio = import_torchaudio()
assert import_torchaudio() is torchaudio
import torch
import torchaudio.functional
assert torchaudio.functional.resample(torch.ones(1, 320), 32000, 16000).shape == (1, 160)
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr
