"""A clip for a listener: decoded in a process of its own, whose death or delay is a sentence."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile

from sousa_engine.core.errors import DataError
from sousa_engine.data import audio, excerpt

CLIP_S, RATE_HZ = 2.0, 16_000


@pytest.fixture
def path(tmp_path):
    """Two channels of 3 s at 44.1 kHz."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, (132_300, 2)), 44_100)
    return tmp_path / "a.wav"


def played(path, code: str, **limits) -> str:
    """What is said of a file whose decoder does this instead."""
    with pytest.raises(DataError) as error:
        excerpt.waveform(path, CLIP_S, RATE_HZ, command=(sys.executable, "-c", code), **limits)
    return str(error.value)


def test_the_samples_are_those_that_a_training_gets(path):
    found = excerpt.waveform(path, CLIP_S, RATE_HZ)
    assert found.dtype == np.float32 and np.array_equal(found, audio.load(path, CLIP_S, RATE_HZ))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it crashes the decoder (signal SIGSEGV)"),
        ("from sousa_engine.data import decode; decode.limit_cpu(1)\nwhile True: pass", "of processor time"),
        ("raise RuntimeError('a bug')", "the decoder failed with RuntimeError: a bug"),
    ],
)
def test_a_file_that_its_decoder_does_not_survive_is_a_sentence_with_its_name(path, code, says):
    said = played(path, code)
    assert str(path) in said and says in said and said.endswith("Export it again, or remove it.")


def test_a_decoder_that_does_not_end_is_ended(path):
    assert "did not finish within 0.2 s" in played(path, "import signal; signal.pause()", wall_s=0.2)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit address space")
def test_a_clip_that_needs_too_much_memory_is_refused(path):
    with pytest.raises(DataError, match="more than 2 GiB"):
        excerpt.waveform(path, 3 * 2**30 / 4 / RATE_HZ, RATE_HZ)


def test_processor_time_is_limited_from_the_first_sample_on(path):
    code = "import resource, sys; from sousa_engine.data import audio, excerpt\n"
    code += "audio.load = lambda *_: sys.exit(f'{resource.getrlimit(resource.RLIMIT_CPU)[0]} s')\n"
    code += "from pathlib import Path; excerpt.main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))"
    limit_s = int(played(path, code).split("failed with ")[1].split()[0])
    assert excerpt.CPU_S <= limit_s <= excerpt.CPU_S + 20


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"RIFF")])
def test_a_file_that_cannot_be_read_says_why(path, damage):
    damage(path)
    with pytest.raises(DataError, match=r"a\.wav cannot be"):
        excerpt.waveform(path, CLIP_S, RATE_HZ)
