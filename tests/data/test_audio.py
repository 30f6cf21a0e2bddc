"""Waveforms: one length, one rate, one channel, and files that are not what they say."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError
from sousa_engine.data import audio, decode, headers
from sousa_engine.data.clips import Clip, Manifest
from sousa_engine.data.manifest import open_dataset


def tone(seconds, rate_hz, hz=440.0):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def one_file(path, clip_s=1.0, rate_hz=16_000):
    clip = Clip(clip_id="a", label="x", split="train", group="", duration_s=1.0, columns={}, source=path)
    manifest = Manifest(
        name="one",
        layout="folder",
        classes=("x",),
        clips=(clip,),
        clip_s=clip_s,
        sample_rate_hz=rate_hz,
        content_key="0" * 32,
        notes=(),
    )
    return manifest, clip


def test_an_embedded_clip_is_its_length_at_any_rate():
    micro = open_dataset(DataConfig(dataset="micro"))
    for rate_hz in (None, 16_000, 32_000, 44_100):
        waveform = audio.waveform(micro, micro.clips[0], rate_hz)
        assert waveform.dtype == np.float32 and waveform.shape == (4 * (rate_hz or 16_000),)
        assert 0 < np.abs(waveform).max() <= 1.01


def test_a_short_recording_is_followed_by_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.4, 16_000), 16_000, subtype="FLOAT")
    waveform = audio.waveform(*one_file(tmp_path / "a.wav"))
    assert np.array_equal(waveform[:6400], tone(0.4, 16_000))
    assert waveform.shape == (16_000,) and not waveform[6400:].any()


def test_a_long_recording_gives_its_first_part(tmp_path):
    long = np.concatenate([tone(1.0, 16_000), tone(1.0, 16_000, hz=880.0)])
    soundfile.write(tmp_path / "a.wav", long, 16_000, subtype="FLOAT")
    assert np.array_equal(audio.waveform(*one_file(tmp_path / "a.wav")), long[:16_000])


def test_channels_are_averaged(tmp_path):
    left = tone(1.0, 16_000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, 0 * left], axis=1), 16_000, subtype="FLOAT")
    assert np.allclose(audio.waveform(*one_file(tmp_path / "a.wav")), left / 2)


@pytest.mark.parametrize(
    ("other", "channel"),
    [(-1.0, 0), (-0.6, 0), (-1.4, 1), (-0.2, None), (0.0, None), (0.3, None), (1.0, None)],
)
def test_where_channels_cancel_the_loudest_one_is_used(tmp_path, other, channel):
    left = tone(1.0, 16_000)
    both = np.stack([left, np.float32(other) * left], axis=1)
    soundfile.write(tmp_path / "a.wav", both + 0.05, 16_000, subtype="FLOAT")  # an offset hides no cancellation
    wanted = both.mean(axis=1) if channel is None else both[:, channel]
    assert np.allclose(audio.waveform(*one_file(tmp_path / "a.wav")), wanted + 0.05, atol=1e-6)


def test_channels_cancel_in_the_part_that_is_used(tmp_path):
    left = tone(2.0, 16_000)
    right = np.concatenate([-left[:16_000], left[16_000:]])
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    assert np.abs(audio.waveform(*one_file(tmp_path / "a.wav", clip_s=0.9))).max() > 0.4
    decoded = decode.decode(tmp_path / "a.wav")
    ((kind, reason),) = decoded.warnings
    assert kind == "polarity" and reason.startswith("in its first 1") and "channel 1 of 2" in reason


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000])
def test_resampling_keeps_a_tone_where_it_was(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.flac", tone(2.0, rate_hz), rate_hz)
    waveform = audio.waveform(*one_file(tmp_path / "a.flac"))
    inner = slice(200, -200)  # the tone starts abruptly; nothing was cut in front of it
    assert np.allclose(waveform[inner], tone(1.0, 16_000)[inner], atol=2e-3)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_usual_formats_are_read(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, tone(1.0, 16_000), 16_000)
    header = headers.read_header(path)
    assert header.duration_s == pytest.approx(1.0, abs=0.1) and header.sample_rate_hz == 16_000
    assert np.sqrt(np.mean(audio.waveform(*one_file(path)) ** 2)) == pytest.approx(0.354, abs=0.02)


def test_a_file_cut_short_is_named(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    path.write_bytes(path.read_bytes()[:12_000])
    with pytest.raises(DataError, match=r"cut\.flac (is truncated|cannot be decoded)"):
        audio.waveform(*one_file(path))


def test_samples_that_are_nan_are_named(tmp_path):
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.array([0.0, np.nan] * 4000, dtype=np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav holds samples that are NaN or infinite"):
        audio.waveform(*one_file(path))


def test_a_file_that_went_away_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.wav cannot be decoded"):
        audio.waveform(*one_file(tmp_path / "gone.wav"))


def test_a_header_is_refused_with_its_reason(tmp_path):
    soundfile.write(tmp_path / "slow.wav", np.zeros(4000), 1_000)
    with pytest.raises(DataError, match="claims 1,000 Hz"):
        headers.read_header(tmp_path / "slow.wav")
    with pytest.raises(DataError, match="not a regular file"):
        headers.read_header(tmp_path)
