"""The length of an mp3 file is counted, not estimated, and every reader of files uses the count."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from sousa_engine.data import decode, headers, mp3

RATE_HZ = 44_100


def written(path, *seconds: tuple[float, float], rate_hz: int = RATE_HZ, mode: str = "VARIABLE") -> bytes:
    """Noise at (level, seconds) each as an mp3 file; what was written."""
    draw = np.random.default_rng(0)
    parts = [level * draw.standard_normal(round(length * rate_hz)) for level, length in seconds]
    soundfile.write(path, np.concatenate(parts), rate_hz, format="MP3", bitrate_mode=mode, compression_level=0.1)
    return path.read_bytes()


def second_frame(data: bytes) -> int:
    """Where the frame behind the Xing header begins."""
    return next(at for at in range(4, len(data)) if data[at] == 0xFF and data[at + 1] == data[1])


QUIET_FIRST, LOUD_FIRST = ((1e-6, 2.0), (0.5, 2.0)), ((0.5, 2.0), (1e-6, 2.0))


@pytest.mark.parametrize("rate_hz", [44_100, 22_050, 8_000])
@pytest.mark.parametrize("parts", [QUIET_FIRST, LOUD_FIRST], ids=["quiet first", "loud first"])
def test_without_a_xing_header_the_length_is_counted(tmp_path, parts, rate_hz):
    path = tmp_path / "a.mp3"
    data = written(path, *parts, rate_hz=rate_hz)
    path.write_bytes(data[second_frame(data) :])
    found = decode.decode(path)
    assert found.error == "" and found.duration_s == pytest.approx(4.0, abs=0.2)
    assert headers.read_header(path).duration_s == found.duration_s
    with headers.opened(path) as file:
        assert len(file.read()) == file.frames == round(found.duration_s * rate_hz)
    assert abs(soundfile.info(path).duration - 4.0) > 0.5  # the estimate that this is about


def test_tags_and_bytes_between_frames_are_passed_over(tmp_path):
    path = tmp_path / "a.mp3"
    data = written(path, *LOUD_FIRST)
    frames = data[second_frame(data) :]
    tag = b"ID3\4\0\0" + bytes([0, 0, 16, 0]) + b"\xff\xfb\x90\xc4" * 512
    path.write_bytes(tag + frames + b"TAG" + bytes(125))
    assert headers.read_header(path).duration_s == pytest.approx(4.0, abs=0.2)


def test_a_file_that_goes_on_behind_the_end_of_its_xing_header_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.mp3"
    data = written(path, (0.5, 1.0))
    path.write_bytes(data + data[second_frame(data) :] * 2)
    assert headers.read_header(path).duration_s == pytest.approx(3.0, abs=0.2)
    assert decode.decode(path).error == ""


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_a_correct_xing_header_is_trusted(tmp_path, mode):
    path = tmp_path / "a.mp3"
    written(path, (0.5, 1.0), mode=mode)
    assert mp3.true_length(path, soundfile.info(path).frames) is None
    assert headers.read_header(path).duration_s == pytest.approx(1.0, abs=1e-3)


def test_a_file_cut_short_behind_its_xing_header_is_still_truncated(tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(written(path, (0.5, 4.0))[:-30_000])
    assert decode.decode(path).kind == "truncated"
