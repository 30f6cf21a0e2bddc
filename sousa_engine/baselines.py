"""Baselines: what a data set gives away without a network, so that a run's accuracy has a scale beside it.

Three of them, fitted on train and valid, measured once on test: always naming the most frequent class; a linear
classifier on pooled log-mel statistics, which hear the drum and the room but no rhythm; a classifier on the sequence of
onsets (data/rhythm.py), which hears rhythm and little else. Computed once per data set and split and kept in the
workspace's cache. Importing this imports neither librosa nor scikit-learn, and nothing here imports torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sousa_engine import run_files, spool
from sousa_engine.analysis.significance import Proportion, wilson
from sousa_engine.backbones import intake
from sousa_engine.backbones.intake import Intake, Tell
from sousa_engine.config import DataConfig
from sousa_engine.data import audio, features, rhythm, scan
from sousa_engine.data.manifest import Manifest, counts
from sousa_engine.data.synth import ClipPlan
from sousa_engine.errors import DataError, UserError, WorkspaceError
from sousa_engine.records import Prediction
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

METHOD = 1  # raised when the same clips and splits would give other figures
MAJORITY, POOLED, ONSETS = "majority", "pooled-log-mel", "onset-sequence"
TITLES = {MAJORITY: "Majority class", POOLED: "Pooled log-mel statistics", ONSETS: "Onset sequence"}
LISTENING, CHOOSING = "listening", "choosing"  # what `tell` says: clips heard so far, then fits of the cross-validation

_RESULT, _FIGURES = "result.json", "figures.part"
_FOLDS = 5
_TREES = 400
_BATCH = 16  # clips
_POOL_FROM = 400  # clips: fewer are heard before worker processes would be up
_MOST_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One baseline on test. how: what answers, in a few words. tried: candidate -> accuracy in cross-validation."""

    name: str
    right: int
    n: int
    macro_f1: float
    how: str
    tried: Mapping[str, float]

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def accuracy(self) -> Proportion:
        """With its 95 % interval (Wilson)."""
        return wilson(self.right, self.n)


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """All baselines of a data set and split, weakest first. compute_s: how long the last attempt took."""

    dataset: str
    classes: int
    baselines: tuple[Baseline, ...]
    computed_at_ms: int
    compute_s: float
    folder: Path

    def __getitem__(self, name: str) -> Baseline:
        return next(one for one in self.baselines if one.name == name)

    def predictions(self, name: str) -> tuple[Prediction, ...]:
        """Of every test clip, as a run's are: analysis.significance.paired takes both."""
        return spool.read_predictions(self.folder / f"{name}.jsonl")


def cached(manifest: Manifest, workspace: Workspace) -> Baselines | None:
    """What was computed for exactly these clips, labels and splits; None where nothing was. Reads one small file."""
    return _read(folder_of(manifest, workspace))


def cached_for(data: DataConfig, workspace: Workspace) -> Baselines | None:
    """As `cached`, for a run's `config.data`; None also where the data set cannot be opened any more.

    Opens the data set, which for files reads every header: a page should remember the answer for a while.
    """
    try:
        return cached(scan.open_dataset(data, workspace), workspace)
    except UserError:
        return None


def look(manifest: Manifest, workspace: Workspace) -> Intake | None:
    """Who computes them just now and how far that is, or why the last attempt ended; None if there is nothing to tell.

    doing: LISTENING or CHOOSING.
    """
    return intake.look(folder_of(manifest, workspace))


def folder_of(manifest: Manifest, workspace: Workspace) -> Path:
    """Where the baselines of these clips, labels and splits lie: another name for any other clips or splits."""
    digest = hashlib.sha256(f"{METHOD}\n{manifest.content_key}\n".encode())
    for clip in manifest.clips:
        facts = "\0".join((clip.clip_id, clip.label, clip.split, clip.group))
        digest.update(f"{facts}\n".encode("utf-8", "surrogateescape"))
    return workspace.cache / "baselines" / digest.hexdigest()[:32]


def compute(
    manifest: Manifest, workspace: Workspace, *, tell: Tell | None = None, lock_fd: int | None = None
) -> Baselines:
    """The baselines, from the cache or computed now; waits while another process computes the same.

    tell(doing, done, total): LISTENING in clips, then CHOOSING in fits. lock_fd: of intake.lock, taken by who started
    us. Clips heard before an attempt was broken off are not heard again. Raises DataError for clips that cannot be
    read and for a full disk, WorkspaceError for a folder that cannot be written to.
    """
    folder = folder_of(manifest, workspace)
    if lock_fd is None and (found := _read(folder)):
        return found
    try:
        with intake.taking_in(folder, lock_fd=lock_fd, tell=tell) as told:
            if found := _read(folder):
                return found
            began = time.monotonic()
            pattern, pooled = _figures(manifest, folder, told)
            measured = _measure(manifest, pattern, pooled, told)
            for one, predictions in measured:
                spool.write_predictions(folder / f"{one.name}.jsonl", predictions)
            found = Baselines(
                dataset=manifest.name,
                classes=len(manifest.classes),
                baselines=tuple(one for one, _ in measured),
                computed_at_ms=time.time_ns() // 1_000_000,
                compute_s=round(time.monotonic() - began, 1),
                folder=folder,
            )
            _write(found)
            (folder / _FIGURES).unlink()
            return found
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"The disk of {workspace.cache} is full. Free some space and try again.") from error
        raise WorkspaceError(f"{folder} cannot be written to: {error.strerror or error}.") from error


def _read(folder: Path) -> Baselines | None:
    facts = run_files.read_json(folder / _RESULT)
    if facts is None:
        return None
    baselines = tuple(Baseline(**one) for one in facts.pop("baselines"))
    return Baselines(**facts, baselines=baselines, folder=folder)


def _write(found: Baselines) -> None:
    facts: dict[str, Any] = asdict(found)
    del facts["folder"]
    run_files.write_json(found.folder / _RESULT, facts)


# Listening


def _figures(manifest: Manifest, folder: Path, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """(clips, rhythm.PATTERN) and (clips, rhythm.POOLED) float32, in the order of manifest.clips.

    Rows are appended to a file as they come, so that the next attempt goes on where this one is broken off.
    """
    path, width, total = folder / _FIGURES, rhythm.PATTERN + rhythm.POOLED, len(manifest.clips)
    broken: list[str] = []
    with path.open("ab") as file:
        done = file.tell() // (4 * width)
        file.truncate(4 * width * done)  # a row that a killed process left half written
        tell(LISTENING, done, total)
        for rows, failures in _heard([clip.source for clip in manifest.clips[done:]], manifest.clip_s):
            broken += failures
            if broken:
                continue  # only to name every clip that is
            file.write(rows.tobytes())
            file.flush()
            done += len(rows)
            tell(LISTENING, done, total)
    if broken:
        more = f" And {len(broken) - 3} more." if len(broken) > 3 else ""
        raise DataError(" ".join(broken[:3]) + more)
    figures = np.fromfile(path, dtype=np.float32).reshape(total, width)
    return figures[:, : rhythm.PATTERN], figures[:, rhythm.PATTERN :]


def _heard(sources: list[ClipPlan | Path], clip_s: float) -> Iterator[tuple[np.ndarray, list[str]]]:
    """The figures of batches of clips, in order, and what is wrong with those that have none."""
    batches = [sources[i : i + _BATCH] for i in range(0, len(sources), _BATCH)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(sources) < _POOL_FROM:
        yield from (_hear(batch, clip_s) for batch in batches)
        return
    workers = min(cores, _MOST_WORKERS)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=features.follow_parent)
    try:
        yield from pool.map(_hear, batches, [clip_s] * len(batches))
    except BrokenProcessPool:
        raise DataError(
            "A process that listened to clips was killed, perhaps for want of memory. Try again: clips heard are kept."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _hear(sources: list[ClipPlan | Path], clip_s: float) -> tuple[np.ndarray, list[str]]:
    rows = np.zeros((len(sources), rhythm.PATTERN + rhythm.POOLED), dtype=np.float32)
    failures = []
    for row, source in zip(rows, sources, strict=True):
        try:
            waveform = audio.load(source, clip_s, rhythm.SAMPLE_RATE_HZ)
        except DataError as error:
            failures.append(str(error))
            continue
        row[: rhythm.PATTERN], row[rhythm.PATTERN :] = rhythm.pattern(waveform), rhythm.pooled(waveform)
    return rows, failures


# Classifying


def _measure(
    manifest: Manifest, pattern: np.ndarray, pooled: np.ndarray, tell: Tell
) -> list[tuple[Baseline, list[Prediction]]]:
    """Each baseline with its predictions of test. Test is looked at once, by classifiers that are fitted for good."""
    y = np.array(manifest.targets())
    fit = np.array([i for i, clip in enumerate(manifest.clips) if clip.split != "test"])
    test = np.array(manifest.indices("test"))
    held = counts(manifest)
    most = max(range(len(manifest.classes)), key=lambda i: held[manifest.classes[i]]["train"])
    always = np.zeros((len(test), len(manifest.classes)))
    always[:, most] = 1.0
    found = [_result(manifest, MAJORITY, always, f"always {manifest.classes[most]}", {})]

    folds = _folds(manifest, fit)
    offered = {POOLED: (pooled, _linear_candidates()), ONSETS: (pattern, _onset_candidates())}
    total = sum(len(candidates) for _, candidates in offered.values()) * len(folds)
    done = 0

    def fitted_one() -> None:
        nonlocal done
        done += 1
        tell(CHOOSING, done, total)

    tell(CHOOSING, 0, total)
    for name, (x, candidates) in offered.items():
        tried = {label: _cross_validated(make, x, y, folds, fitted_one) for label, make in candidates.items()}
        best = max(tried, key=tried.__getitem__)
        classifier = candidates[best]().fit(x[fit], y[fit])
        found.append(_result(manifest, name, classifier.predict_proba(x[test]), best, tried))
    return found


def _linear_candidates() -> dict[str, Callable[[], Any]]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def logistic(c: float) -> Callable[[], Any]:
        return lambda: make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))

    return {f"logistic regression, C = {c:g}": logistic(c) for c in (0.01, 0.1)}


def _onset_candidates() -> dict[str, Callable[[], Any]]:
    from sklearn.ensemble import ExtraTreesClassifier, VotingClassifier

    def trees() -> ClassifierMixin:
        return ExtraTreesClassifier(_TREES, random_state=0, n_jobs=-1)

    linear = _linear_candidates()
    name, logistic = next(iter(linear.items()))

    def both() -> ClassifierMixin:
        return VotingClassifier([("trees", trees()), ("logistic", logistic())], voting="soft")

    return {"extra trees": trees, name: logistic, f"extra trees and {name}, averaged": both}


def _folds(manifest: Manifest, fit: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions in manifest.clips to fit on and to measure on. Players stay whole where enough of them are named."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = [manifest.clips[i].label for i in fit]
    groups = [manifest.clips[i].group or manifest.clips[i].clip_id for i in fit]
    n = min(_FOLDS, *Counter(labels).values())
    splits: list[tuple[np.ndarray, np.ndarray]] = []
    if (n_groups := len(set(groups))) > 1:
        splitter = StratifiedGroupKFold(min(n, n_groups), shuffle=True, random_state=0)
        splits = list(splitter.split(fit, labels, groups))
    everywhere = all({labels[i] for i in held} == set(manifest.classes) for held, _ in splits)
    if not splits or not everywhere:  # players who play other classes each: none is left to learn some class from
        splits = list(StratifiedKFold(n, shuffle=True, random_state=0).split(fit, labels))
    return [(fit[held], fit[out]) for held, out in splits]


def _cross_validated(
    make: Callable[[], Any],
    x: np.ndarray,
    y: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    fitted_one: Callable[[], None],
) -> float:
    """Share of clips named rightly by classifiers that were not fitted on them."""
    right = n = 0
    for held, out in folds:
        right += int(np.sum(make().fit(x[held], y[held]).predict(x[out]) == y[out]))
        n += len(out)
        fitted_one()
    return right / n


def _result(
    manifest: Manifest, name: str, probabilities: np.ndarray, how: str, tried: Mapping[str, float]
) -> tuple[Baseline, list[Prediction]]:
    """probabilities: (test clips, classes). Macro-F1 as runs have it: over the classes that test holds."""
    from sklearn.metrics import f1_score

    test = manifest.indices("test")
    truth, predicted = np.array(manifest.targets())[list(test)], probabilities.argmax(axis=1)
    predictions = [
        Prediction(
            clip_id=manifest.clips[i].clip_id,
            split="test",
            label=manifest.clips[i].label,
            predicted=manifest.classes[guess],
            probability=round(float(row[guess]), 6),
            label_probability=round(float(row[label]), 6),
        )
        for i, guess, label, row in zip(test, predicted, truth, probabilities, strict=True)
    ]
    baseline = Baseline(
        name=name,
        right=int(np.sum(truth == predicted)),
        n=len(test),
        macro_f1=float(f1_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0)),
        how=how,
        tried=tried,
    )
    return baseline, predictions
