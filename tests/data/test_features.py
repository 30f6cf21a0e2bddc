"""The feature cache: computed once, safe between processes, and honest about disks and files."""

from __future__ import annotations

import errno
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from types import ModuleType

import numpy as np
import psutil
import pytest
import soundfile
import torch

from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError, WorkspaceError
from sousa_engine.data import audio, features
from sousa_engine.data.manifest import open_dataset
from sousa_engine.frontends import FrontEndSpec, log_mel
from sousa_engine.workspace import PROJECT_ROOT

SPEC = FrontEndSpec(sample_rate_hz=16_000, mel_bins=32, mean=-5.0, std=4.0, min_frames=16, max_frames=400)


@pytest.fixture
def drums(tmp_path):
    """Two classes of four recordings of noise, half a second each."""
    rng = np.random.default_rng(0)
    for label in ("tap", "roll"):
        (tmp_path / "drums" / label).mkdir(parents=True)
        for i in range(4):
            soundfile.write(tmp_path / f"drums/{label}/{i}.wav", rng.normal(0, 0.1, 8000).clip(-1, 1), 16_000)
    return tmp_path / "drums"


def opened(root, **settings):
    return open_dataset(DataConfig(dataset=str(root), **settings))


def test_features_are_the_front_ends_in_the_order_of_the_clips(drums, workspace):
    manifest = opened(drums)
    cache = features.feature_cache(manifest, SPEC, workspace)
    assert cache.array.shape == (8, SPEC.frames(16_000), 32) and cache.array.dtype == np.float16
    for i, clip in enumerate(manifest.clips):
        expected = log_mel(torch.from_numpy(audio.waveform(manifest, clip))[None], SPEC)[0].numpy()
        assert np.allclose(cache.array[i], expected, atol=0.01)


def test_an_embedded_set_is_cached_too(workspace):
    micro = open_dataset(DataConfig(dataset="micro", clip_s=1.0))
    cache = features.feature_cache(micro, SPEC, workspace)
    assert cache.array.shape == (160, 98, 32) and np.isfinite(cache.array).all()


def test_what_was_computed_once_is_read_back(drums, workspace):
    first = features.feature_cache(opened(drums), SPEC, workspace)
    again = features.feature_cache(opened(drums), SPEC, workspace, progress=lambda done, total: pytest.fail("computed"))
    assert (first.was_cached, again.was_cached) == (False, True)
    assert first.path == again.path and np.array_equal(first.array, again.array)


def test_another_split_or_normalisation_reads_the_same_cache(drums, workspace):
    features.feature_cache(opened(drums), SPEC, workspace)
    other = replace(SPEC, mean=0.0, std=1.0, max_frames=100)
    assert features.feature_cache(opened(drums, split_seed=5), other, workspace).was_cached


@pytest.mark.parametrize("change", ["a file", "the clip length", "the front end"])
def test_whatever_changes_a_feature_makes_a_new_cache(drums, workspace, change):
    features.feature_cache(opened(drums), SPEC, workspace)
    spec, settings = SPEC, {}
    if change == "a file":
        soundfile.write(drums / "tap/0.wav", np.zeros(7000), 16_000)
    elif change == "the clip length":
        settings = {"clip_s": 0.4}
    else:
        spec = replace(SPEC, mel_bins=40)
    assert not features.feature_cache(opened(drums, **settings), spec, workspace).was_cached


def test_progress_counts_clips_up_to_all(drums, workspace, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 3)
    seen = []
    features.feature_cache(opened(drums), SPEC, workspace, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 8), (3, 8), (6, 8), (8, 8)]


def test_a_stop_from_the_progress_leaves_nothing_behind(drums, workspace):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features.feature_cache(opened(drums), SPEC, workspace, progress=stop)
    assert [p.suffix for p in (workspace.cache / "features").iterdir()] == [".lock"]
    assert not features.feature_cache(opened(drums), SPEC, workspace).was_cached


def test_silence_is_the_floor(drums, workspace):
    soundfile.write(drums / "tap/0.wav", np.zeros(8000), 16_000)
    manifest = opened(drums)
    cache = features.feature_cache(manifest, SPEC, workspace)
    silent = cache.array[[c.clip_id for c in manifest.clips].index("tap/0.wav")]
    assert (silent.astype(np.float32) == cache.floor).all()
    assert cache.floor == pytest.approx(math.log(SPEC.floor), abs=0.01)


def test_a_truncated_cache_is_computed_again(drums, workspace):
    first = features.feature_cache(opened(drums), SPEC, workspace)
    whole, expected = first.path.read_bytes(), np.array(first.array)
    for damaged in (whole[:-100], whole[:20], b"", b"garbage" * 100):
        first.path.write_bytes(damaged)
        again = features.feature_cache(opened(drums), SPEC, workspace)
        assert not again.was_cached and np.array_equal(again.array, expected)


def test_what_a_killed_process_left_is_cleared_away(drums, workspace):
    path = features.feature_cache(opened(drums), SPEC, workspace).path
    path.unlink()
    left = path.with_suffix(".99999.tmp")
    left.write_bytes(b"half a file")
    features.feature_cache(opened(drums), SPEC, workspace)
    assert not left.exists()


def test_files_that_cannot_be_decoded_are_named_together(drums, workspace):
    manifest = opened(drums)
    for name in ("roll/1.wav", "tap/2.wav"):
        (drums / name).write_bytes(b"RIFF but not really")
    with pytest.raises(DataError, match=r"2 clips cannot be used.*roll/1\.wav.*tap/2\.wav"):
        features.feature_cache(manifest, SPEC, workspace)


def test_clips_too_long_for_the_backbone_are_refused(drums, workspace):
    with pytest.raises(DataError, match="too long"):
        features.feature_cache(opened(drums), replace(SPEC, max_frames=40), workspace)


def test_a_full_disk_is_a_sentence_with_the_size(drums, workspace, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(DataError, match=r"disk is full.*MiB"):
        features.feature_cache(opened(drums), SPEC, workspace)


def test_a_disk_that_fills_up_while_writing_is_the_same_sentence(drums, workspace, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="disk is full"):
        features.feature_cache(opened(drums), SPEC, workspace)
    assert [p.suffix for p in (workspace.cache / "features").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_to_is_named(drums, workspace):
    workspace.runs.mkdir()
    workspace.cache.write_text("a file where the folder should be")
    with pytest.raises(WorkspaceError, match=r"cannot be written to"):
        features.feature_cache(opened(drums), SPEC, workspace)


CHILD = """
import sys
from pathlib import Path
from sousa_engine.frontends import FrontEndSpec
from sousa_engine.core.config import DataConfig
from sousa_engine.data import features
from sousa_engine.data.manifest import open_dataset
from sousa_engine.workspace import Workspace

spec = FrontEndSpec(sample_rate_hz=16_000, mel_bins=32, mean=-5.0, std=4.0, min_frames=16, max_frames=400)
print("ready", flush=True)
sys.stdin.readline()
cache = features.feature_cache(
    open_dataset(DataConfig(dataset="micro")), spec, Workspace(root=Path(sys.argv[1])))
print(cache.was_cached, float(cache.array.astype("float64").sum()), flush=True)
"""


def test_two_processes_at_once_compute_once_and_read_the_same(workspace):
    start = [sys.executable, "-c", CHILD, str(workspace.root)]
    both = [
        subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    answers = [process.communicate("go\n", timeout=120)[0].split() for process in both]
    assert sorted(answer[0] for answer in answers) == ["False", "True"]
    assert answers[0][1] == answers[1][1]


def test_worker_processes_make_the_same_features_as_threads(workspace, monkeypatch):
    micro = open_dataset(DataConfig(dataset="micro", clip_s=1.0))
    threads = features.feature_cache(micro, SPEC, workspace)
    expected = np.array(threads.array)
    threads.path.unlink()
    monkeypatch.setattr(features, "POOL_FROM", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    # Streamlit's AppTest leaves the last page as __main__, and a spawned worker would run that first.
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    assert np.array_equal(features.feature_cache(micro, SPEC, workspace).array, expected)


HELD = """
import os, sys
from pathlib import Path
from sousa_engine.frontends import FrontEndSpec
from sousa_engine.core.config import DataConfig
from sousa_engine.data import features
from sousa_engine.data.manifest import open_dataset
from sousa_engine.workspace import Workspace

def hold(done, total):
    if done:
        print(done, flush=True)
        sys.stdin.readline()

if __name__ == "__main__":
    features.POOL_FROM = 1
    os.sched_getaffinity = lambda pid: {0, 1}
    spec = FrontEndSpec(sample_rate_hz=16_000, mel_bins=32, mean=-5.0, std=4.0, min_frames=16, max_frames=400)
    features.feature_cache(open_dataset(DataConfig(dataset="micro")), spec, Workspace(root=Path(sys.argv[1])), hold)
"""


@pytest.mark.process
def test_workers_end_when_their_process_is_killed(workspace):
    script = workspace.root / "held.py"
    script.write_text(HELD)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(workspace.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "32\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
