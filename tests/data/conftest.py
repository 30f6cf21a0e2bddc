"""Fixtures for tests of data sets."""

import bad_audio
import pytest


@pytest.fixture
def drums(tmp_path):
    """A folder of two classes with six sound recordings each."""
    for at, label in enumerate(("roll", "tap")):
        for i in range(6):
            bad_audio.write(tmp_path / "drums" / label / f"{i}.wav", 10 * at + i)
    return tmp_path / "drums"
