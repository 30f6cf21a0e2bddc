"""Log-mel features of a whole data set, computed once and read back through a memory map.

One file per data set and front end: float16 raw log-mel, named by a hash of everything that it depends on. Reading it
costs a fraction of computing it; augmentation is applied afterwards. Imports torch only when it computes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import numpy as np

from sousa_engine.core.errors import DataError, WorkspaceError
from sousa_engine.data import audio
from sousa_engine.data.clips import Manifest
from sousa_engine.data.synth import ClipPlan
from sousa_engine.frontends import FrontEndSpec
from sousa_engine.workspace import Workspace

Progress = Callable[[int, int], None]  # clips done, clips in total

BATCH = 32  # clips; larger batches do not fit the processor's cache and take half as long again
POOL_FROM = 2_000  # clips to synthesise; fewer are finished before worker processes would have started
_KEY_VERSION = 2  # increased when the same clips and front end would give different numbers
_AFTER_THE_CACHE = {"mean", "std", "min_frames", "max_frames"}  # fields of a front end that do not affect raw log-mel
_MAX_WORKERS = 8
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """array: (clips, frames, mels) float16 raw log-mel, read-only, in the order of manifest.clips.

    floor: the feature value of silence. was_cached: nothing was computed; otherwise compute_s tells the time it took.
    """

    array: np.ndarray
    path: Path
    floor: float
    was_cached: bool
    compute_s: float = 0.0


def feature_cache(
    manifest: Manifest, spec: FrontEndSpec, workspace: Workspace, progress: Progress | None = None
) -> FeatureCache:
    """The features of every clip, from the cache or computed now.

    `progress(done, total)` is called after every batch, and while another process computes the same file; an exception
    from it ends the wait or the computation and leaves no file behind. Raises DataError for clips that cannot be read
    or are too long for the front end, and for a full disk; WorkspaceError for a folder that cannot be written to.
    """
    report = progress or (lambda done, total: None)
    samples = audio.samples(manifest.clip_s, spec.sample_rate_hz)
    shape = (len(manifest.clips), spec.frames(samples), spec.mel_bins)
    path = workspace.cache / "features" / f"{_key(manifest, spec)}.npy"
    floor = float(np.float16(spec.silence))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock"), lambda: report(0, shape[0])):
            array = _open(path, shape)
            if array is not None:
                return FeatureCache(array=array, path=path, floor=floor, was_cached=True)
            began = time.monotonic()
            _compute(manifest, spec, path, shape, report)
            compute_s = time.monotonic() - began
    except OSError as error:
        raise _disk_error(error, path, shape) from error
    array = _open(path, shape)
    assert array is not None, f"{path} is not what was just written"
    return FeatureCache(array=array, path=path, floor=floor, was_cached=False, compute_s=compute_s)


def _key(manifest: Manifest, spec: FrontEndSpec) -> str:
    front_end = {name: value for name, value in asdict(spec).items() if name not in _AFTER_THE_CACHE}
    facts = {"version": _KEY_VERSION, "content": manifest.content_key, "front_end": front_end}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that the kernel releases if this process dies; call `waiting` while another process holds it."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(_POLL_S)
        yield


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The memory map; None if the file is missing or incomplete."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.float16 else None


def _compute(manifest: Manifest, spec: FrontEndSpec, path: Path, shape: tuple[int, ...], report: Progress) -> None:
    import torch

    from sousa_engine.frontends import log_mel

    for left_over in path.parent.glob(f"{path.stem}.*.tmp"):  # of a killed process, since we hold the lock
        left_over.unlink(missing_ok=True)
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, "not enough space")
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    done = 0
    report(0, shape[0])
    try:
        # Written, not mapped: a full disk then raises an error instead of SIGBUS.
        with temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            for waveforms in _waveforms(manifest, spec.sample_rate_hz):
                with torch.inference_mode():
                    features = log_mel(torch.from_numpy(waveforms), spec).numpy()
                assert features.shape[1:] == shape[1:], f"log_mel made {features.shape[1:]}, spec says {shape[1:]}"
                file.write(features.astype(np.float16).tobytes())
                done += len(features)
                report(done, shape[0])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _waveforms(manifest: Manifest, sample_rate_hz: int) -> Iterator[np.ndarray]:
    """Batches of float32 (clips, samples), in order, loaded slightly ahead of their use.

    Raises one DataError for all clips that cannot be read, after trying every clip.
    """
    sources = [clip.source for clip in manifest.clips]
    batches = (sources[i : i + BATCH] for i in range(0, len(sources), BATCH))
    broken: list[str] = []
    executor, workers = _executor(manifest)
    pending: deque[Future[tuple[np.ndarray, list[str]]]] = deque()
    try:
        for batch in itertools.islice(batches, workers + 1):
            pending.append(executor.submit(_load, batch, manifest.clip_s, sample_rate_hz))
        while pending:
            waveforms, failures = pending.popleft().result()
            pending.extend(
                executor.submit(_load, b, manifest.clip_s, sample_rate_hz) for b in itertools.islice(batches, 1)
            )
            broken += failures
            if not broken:
                yield waveforms
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    if len(broken) == 1:
        raise DataError(broken[0])
    if broken:
        raise DataError(f"{len(broken)} clips cannot be used. The first three: " + " ".join(broken[:3]))


def _executor(manifest: Manifest) -> tuple[Executor, int]:
    """Threads for files (decoding releases the GIL), processes for synthesising many clips (which holds it)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, _MAX_WORKERS)
    if manifest.layout != "embedded":
        return ThreadPoolExecutor(workers), workers
    if workers == 1 or len(manifest.clips) < POOL_FROM:
        return ThreadPoolExecutor(1), 1
    # Spawned, not forked: the caller runs torch's threads, and a fork would copy their locks.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=follow_parent), workers


def _load(sources: list[ClipPlan | Path], clip_s: float, sample_rate_hz: int) -> tuple[np.ndarray, list[str]]:
    waveforms = np.zeros((len(sources), audio.samples(clip_s, sample_rate_hz)), dtype=np.float32)
    failures = []
    for i, source in enumerate(sources):
        try:
            waveforms[i] = audio.load(source, clip_s, sample_rate_hz)
        except DataError as error:
            failures.append(str(error))
    return waveforms, failures


def follow_parent() -> None:
    """In a worker process: ignore signals that the parent handles, and exit when the parent does, for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _disk_error(error: OSError, path: Path, shape: tuple[int, ...]) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"The disk is full: the features of this data set need {2 * int(np.prod(shape)) / 2**20:,.0f} MiB in "
            f"{path.parent}. Free some space, or set SOUSA_WORKSPACE to a folder on another disk."
        )
    return WorkspaceError(
        f"{path.parent} cannot be written to ({error.strerror}). Make it writable, or set SOUSA_WORKSPACE to another "
        "folder."
    )
