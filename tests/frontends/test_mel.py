import math

import pytest
import torch
from parity.oracle import Oracle
from torchaudio.compliance import kaldi

from sousa_engine import backbones, frontends
from sousa_engine.core.errors import DataError
from sousa_engine.frontends import mel

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
    monkeypatch.setattr(mel, "tables", lambda *a, own=mel.tables: (own(*a)[0], povey))
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


ONE_OF_EACH = ["ast-base", "mn10_as", "htsat-audioset", "beats-iter3"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_front_end_is_batched_and_foretells_its_frames(name):
    spec = backbones.variant(name).front_end
    generator = torch.Generator().manual_seed(0)
    for samples in (spec.sample_rate_hz, spec.sample_rate_hz + 159, spec.samples(spec.min_frames)):
        clips = 0.1 * torch.randn(3, samples, generator=generator)
        together = frontends.log_mel(clips, spec)
        assert together.shape == (3, spec.frames(samples), spec.mel_bins)
        one_by_one = torch.cat([frontends.log_mel(clip[None], spec) for clip in clips])
        torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=0)
    assert spec.frames(spec.samples(100)) == 100 and spec.frames(spec.samples(101) - 1) == 100


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_silence_is_what_the_spec_says_and_never_infinite(name):
    spec = backbones.variant(name).front_end
    features = frontends.log_mel(torch.zeros(1, spec.sample_rate_hz), spec)
    torch.testing.assert_close(features, torch.full_like(features, spec.silence), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_gain_moves_every_bin_by_the_units_the_spec_says(name):
    spec = backbones.variant(name).front_end
    clip = torch.randn(1, spec.sample_rate_hz, generator=torch.Generator().manual_seed(0))
    louder = frontends.log_mel(math.exp(0.5) * clip, spec) - frontends.log_mel(clip, spec)  # a factor of e in power
    assert louder.median() == pytest.approx(spec.ln_units, rel=1e-3)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_front_end_lets_gradients_through(name):
    spec = backbones.variant(name).front_end
    clip = (0.1 * torch.randn(2, spec.sample_rate_hz, generator=torch.Generator().manual_seed(0))).requires_grad_()
    frontends.log_mel(clip, spec).mean().backward()
    assert clip.grad.isfinite().all() and (clip.grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_gradients_pass_after_features_were_computed_in_inference_mode(name):
    spec = backbones.variant(name).front_end
    mel.tables.cache_clear()
    clip = 0.1 * torch.randn(1, spec.sample_rate_hz, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        frontends.log_mel(clip, spec)
    clip = clip.clone().requires_grad_()
    frontends.log_mel(clip, spec).mean().backward()
    assert clip.grad.isfinite().all() and (clip.grad != 0).any()


@pytest.mark.parametrize("clip", ["A", "B", "C"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_float32_is_as_near_to_float64_as_its_rounding_allows(name, clip):
    """A spectrum in float32 errs by its epsilon times the frame's amplitude: little of a loud bin, more of a faint one.

    The amplitude is that of the loudest bin; the logarithm of power has twice the relative error of an amplitude.
    """
    spec = backbones.variant(name).front_end
    waveforms = torch.from_numpy(Oracle("beats_iter3").clip(clip))[None]
    exact, found = frontends.log_mel(waveforms.double(), spec), frontends.log_mel(waveforms, spec)
    assert exact.dtype == torch.float64 and found.dtype == torch.float32
    exact, found = exact / spec.ln_units, found / spec.ln_units
    above = (exact.amax(-1, keepdim=True) - exact).div(2).exp()  # how many times louder the loudest bin of its frame is
    epsilon = torch.finfo(torch.float32).eps
    assert ((found - exact).abs() <= 4 * epsilon * (above + exact.abs() + 1)).all()


def test_recordings_are_resampled_once_and_cached_at_the_familys_rate(workspace, monkeypatch):
    """A set at 16 kHz for a backbone that listens at 32 kHz; a second family at that rate computes its own log-mel."""
    from sousa_engine.core.config import DataConfig
    from sousa_engine.data import audio
    from sousa_engine.data import features as feature_store
    from sousa_engine.data import manifest as manifests

    manifest = manifests.open_dataset(DataConfig(dataset="micro"))
    spec = backbones.variant("mn10_as").front_end
    first = feature_store.feature_cache(manifest, spec, workspace)
    clip = audio.waveform(manifest, manifest.clips[5], 32000)
    assert clip.shape == (round(manifest.clip_s * 32000),)
    wanted = frontends.log_mel(torch.from_numpy(clip)[None], spec)[0].half().numpy()
    assert (first.array[5] == wanted).all() and first.floor == pytest.approx(math.log(1e-5), abs=0.01)
    monkeypatch.setattr(audio, "resample", lambda *a: pytest.fail("resampled again"))
    assert feature_store.feature_cache(manifest, spec, workspace).was_cached
