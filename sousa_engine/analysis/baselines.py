"""Baselines: what a data set gives away without a network, so that a run's accuracy has a scale beside it.

Three of them, fitted on train, chosen by valid, measured once on test, as runs are: always naming the most frequent
class; a linear classifier on pooled log-mel statistics, which hear the drum and the room but no rhythm; a classifier on
the sequence of onsets (data/rhythm.py), which hears rhythm and little else. Computed once per data set and split and
kept in the workspace's cache. Importing this imports neither librosa nor scikit-learn, and nothing here imports torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sousa_engine.analysis.significance import Proportion, wilson
from sousa_engine.core.config import DataConfig, RunConfig
from sousa_engine.core.errors import DataError, UserError, WorkspaceError
from sousa_engine.core.records import Prediction
from sousa_engine.data import audio, features, rhythm, scan
from sousa_engine.data.clips import Manifest
from sousa_engine.data.manifest import counts
from sousa_engine.data.splits import SPLITS
from sousa_engine.data.synth import ClipPlan
from sousa_engine.workspace import Workspace, intake, run_files, spool
from sousa_engine.workspace.intake import Intake, Tell

METHOD = 1  # raised when the same clips and splits would give other figures
MAJORITY, POOLED, ONSETS = "majority", "pooled-log-mel", "onset-sequence"
TITLES = {MAJORITY: "Majority class", POOLED: "Pooled log-mel statistics", ONSETS: "Onset sequence"}
LISTENING, CHOOSING = "listening", "choosing"  # what `tell` says: clips heard so far, then classifiers fitted

_RESULT, _FIGURES = "result.json", "figures.part"
_TREES = 400
_TREES_BYTES = 512 * 2**20  # of all nodes together, at most
_STEPS = 500  # of a logistic regression, at most
MOST_CLIPS = {"train": 20_000, "valid": 5_000}  # of more, so many are drawn: evenly over classes, always the same ones
_BATCH = 16  # clips
_POOL_FROM = 400  # clips: fewer are heard before worker processes would be up
_MOST_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One baseline on test. how: what answers, in a few words. tried: candidate -> its accuracy on valid."""

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
    def short(self) -> str:
        """The title within a sentence or a chart: `onset sequence`."""
        return self.title.removesuffix(" statistics").lower()

    @property
    def accuracy(self) -> Proportion:
        """With its 95 % interval (Wilson)."""
        return wilson(self.right, self.n)


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """All baselines of a data set and split, plainest first. compute_s: how long the last attempt took.

    test_key: of the clips they were asked, see `test_key`.
    """

    dataset: str
    classes: int
    baselines: tuple[Baseline, ...]
    test_key: str
    computed_at_ms: int
    compute_s: float
    folder: Path

    def __getitem__(self, name: str) -> Baseline:
        return next(one for one in self.baselines if one.name == name)

    def predictions(self, name: str) -> tuple[Prediction, ...]:
        """Of every test clip, as a run's are: analysis.significance.paired takes both."""
        return spool.read_predictions(self.folder / f"{name}.jsonl")


def find(workspace: Workspace, config: RunConfig) -> tuple[Baseline, ...]:
    """What was measured on the data set and split of `config`, plainest first; () where nothing was, or data is gone.

    Opens the data set, which for files reads every header. Whether a run was tested on the clips that are there today
    is another question: see `of_clips`.
    """
    folder = folder_for(config.data, workspace)
    found = read(folder) if folder else None
    return found.baselines if found else ()


def of_clips(found: Baselines, predictions: Iterable[Prediction]) -> bool:
    """Whether a run's predictions of test are of exactly the clips and labels that these baselines were asked."""
    return test_key(predictions) == found.test_key


def cached(manifest: Manifest, workspace: Workspace) -> Baselines | None:
    """What was computed for exactly these clips, labels and splits; None where nothing was. Reads one small file."""
    return read(folder_of(manifest, workspace))


def look(manifest: Manifest, workspace: Workspace) -> Intake | None:
    """Who computes them just now and how far that is, or why the last attempt ended; None if there is nothing to tell.

    doing: LISTENING or CHOOSING.
    """
    return intake.look(folder_of(manifest, workspace))


def folder_of(manifest: Manifest, workspace: Workspace) -> Path:
    """Where the baselines of these clips, labels and splits lie: another name for any other clips or splits."""
    key = hashlib.sha256(f"{METHOD}\n{manifest.content_key}\n{manifest.split_key}\n".encode()).hexdigest()
    return workspace.cache / "baselines" / key[:32]


def folder_for(data: DataConfig, workspace: Workspace) -> Path | None:
    """As `folder_of`, for a run's `config.data`; None where the data set cannot be opened any more.

    A page should remember the answer for a while: for files, every header is read.
    """
    try:
        return folder_of(scan.open_dataset(data, workspace), workspace)
    except UserError:
        return None


def read(folder: Path) -> Baselines | None:
    """What `folder` holds; None before it is computed."""
    facts = run_files.read_json(folder / _RESULT)
    if facts is None:
        return None
    baselines = tuple(Baseline(**one) for one in facts.pop("baselines"))
    return Baselines(**facts, baselines=baselines, folder=folder)


def test_key(predictions: Iterable[Prediction]) -> str:
    """32 hex digits of which clips were asked and what they are labelled, in any order."""
    asked = sorted(f"{one.clip_id}\0{one.label}\n" for one in predictions)
    return hashlib.sha256("".join(asked).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def compute(
    manifest: Manifest, workspace: Workspace, *, tell: Tell | None = None, lock_fd: int | None = None
) -> Baselines:
    """The baselines, from the cache or computed now; waits while another process computes the same.

    tell(doing, done, total): LISTENING in clips, then CHOOSING in fits. lock_fd: of intake.lock, taken by who started
    us. Clips heard before an attempt was broken off are not heard again. Raises DataError for clips that cannot be
    read and for a full disk, WorkspaceError for a folder that cannot be written to.
    """
    folder = folder_of(manifest, workspace)
    try:
        if lock_fd is None and (found := read(folder)):
            return found
        with intake.taking_in(folder, lock_fd=lock_fd, tell=tell) as told:
            if found := read(folder):
                return found
            began = time.monotonic()
            asked = _ask(manifest)
            pattern, pooled = _figures(manifest, asked, folder, told)
            measured = _measure(manifest, asked, pattern, pooled, told)
            for one, predictions in measured:
                spool.write_predictions(folder / f"{one.name}.jsonl", predictions)
            found = Baselines(
                dataset=manifest.name,
                classes=len(manifest.classes),
                baselines=tuple(one for one, _ in measured),
                computed_at_ms=time.time_ns() // 1_000_000,
                test_key=test_key(measured[0][1]),
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


def _write(found: Baselines) -> None:
    facts: dict[str, Any] = asdict(found)
    del facts["folder"]
    run_files.write_json(found.folder / _RESULT, facts)


# Listening


class _Asked(NamedTuple):
    """Which clips are heard. clips: (n,) positions in manifest.clips, rising; splits: (n,) their splits."""

    clips: np.ndarray
    splits: np.ndarray

    def of(self, split: str) -> np.ndarray:
        """Places in `clips`."""
        return np.flatnonzero(self.splits == split)


def _ask(manifest: Manifest) -> _Asked:
    """All clips of test; of train and valid no more than MOST_CLIPS."""
    rng = np.random.default_rng(0)
    y, chosen = np.array(manifest.targets()), []
    for split in SPLITS:
        clips = np.array(manifest.indices(split))
        if len(clips) > (most := MOST_CLIPS.get(split, len(clips))):
            clips = rng.permutation(clips)
            nth = np.zeros(len(clips), dtype=int)  # in its class: the first of each class come first
            for label in range(len(manifest.classes)):
                own = np.flatnonzero(y[clips] == label)
                nth[own] = np.arange(len(own))
            clips = clips[np.argsort(nth, kind="stable")[:most]]
        chosen.append(clips)
    order = np.sort(np.concatenate(chosen))
    return _Asked(order, np.array([manifest.clips[i].split for i in order]))


def _figures(manifest: Manifest, asked: _Asked, folder: Path, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """(clips, rhythm.PATTERN) and (clips, rhythm.POOLED) float32, in the order of asked.clips.

    Rows are appended to a file as they come, so that the next attempt goes on where this one is broken off.
    """
    path, width, total = folder / _FIGURES, rhythm.PATTERN + rhythm.POOLED, len(asked.clips)
    broken: list[str] = []
    with path.open("ab") as file:
        done = file.tell() // (4 * width)
        file.truncate(4 * width * done)  # a row that a killed process left half written
        tell(LISTENING, done, total)
        for rows, failures in _heard([manifest.clips[i].source for i in asked.clips[done:]], manifest.clip_s):
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
    manifest: Manifest, asked: _Asked, pattern: np.ndarray, pooled: np.ndarray, tell: Tell
) -> list[tuple[Baseline, list[Prediction]]]:
    """Each baseline with its predictions of test. Test is looked at once, by the classifier that valid has chosen.

    pattern, pooled: a row for each of asked.clips.
    """
    held = counts(manifest)
    most = max(range(len(manifest.classes)), key=lambda i: held[manifest.classes[i]]["train"])
    always = np.zeros((len(asked.of("test")), len(manifest.classes)))
    always[:, most] = 1.0
    found = [_result(manifest, MAJORITY, always, f"always {manifest.classes[most]}", {})]

    y = np.array(manifest.targets())[asked.clips]
    train, valid, test = (asked.of(split) for split in SPLITS)
    offered = {POOLED: (pooled, _linear(0.01) | _linear(0.1)), ONSETS: (pattern, _trees(manifest) | _linear(0.01))}
    done, total = 0, sum(len(candidates) for _, candidates in offered.values())
    tell(CHOOSING, done, total)
    for name, (x, candidates) in offered.items():
        answers = {}  # candidate -> probabilities of valid, of test: (clips, classes)
        for label, make in candidates.items():
            classifier = make().fit(x[train], y[train])
            answers[label] = [classifier.predict_proba(x[part]) for part in (valid, test)]
            del classifier
            done += 1
            tell(CHOOSING, done, total)
        if name == ONSETS:
            both = zip(*answers.values(), strict=True)
            answers[f"{' and '.join(answers)}, averaged"] = [np.mean(of_part, axis=0) for of_part in both]
        tried = {label: float(np.mean(of[0].argmax(axis=1) == y[valid])) for label, of in answers.items()}
        best = max(tried, key=tried.__getitem__)
        found.append(_result(manifest, name, answers[best][1], best, tried))
    return found


def _linear(c: float) -> dict[str, Callable[[], Any]]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return {
        f"logistic regression, C = {c:g}": lambda: make_pipeline(
            StandardScaler(), LogisticRegression(C=c, max_iter=_STEPS)
        )
    }


def _trees(manifest: Manifest) -> dict[str, Callable[[], Any]]:
    from sklearn.ensemble import ExtraTreesClassifier

    # A node holds a share for each class; without a limit, 20,000 clips of 40 classes would make 5 GB of trees.
    leaves = max(2, _TREES_BYTES // (_TREES * 2 * 8 * len(manifest.classes)))
    return {"extra trees": lambda: ExtraTreesClassifier(_TREES, max_leaf_nodes=leaves, random_state=0, n_jobs=-1)}


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
    no_clip: dict[str, Any] = {"zero_division": 0}
    baseline = Baseline(
        name=name,
        right=int(np.sum(truth == predicted)),
        n=len(test),
        macro_f1=float(f1_score(truth, predicted, average="macro", labels=np.unique(truth), **no_clip)),
        how=how,
        tried=tried,
    )
    return baseline, predictions


def tried_text(one: Baseline) -> str:
    """`extra trees; best of 3 on valid, there 84.1%`; the name alone if there was no choice."""
    if not one.tried:
        return one.how
    return f"{one.how}; best of {len(one.tried)} on valid, there {one.tried[one.how]:.1%}"
