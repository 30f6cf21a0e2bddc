"""Baselines: the accuracies that are possible on a data set without a neural network, for comparison with runs.

There are three: the majority class; a linear classifier on pooled log-mel statistics, which capture the drum and the
room but no rhythm; and a classifier on the sequence of onsets (data/rhythm.py), which captures little but rhythm. Like
runs, they are fitted on train, selected on valid and measured once on test. They are computed once per data set and
split and kept in the workspace's cache. librosa and scikit-learn are imported only to compute them; torch never is.
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
from sousa_engine.data import audio, features, rhythm
from sousa_engine.data.clips import Manifest
from sousa_engine.data.dataset import DataSet
from sousa_engine.data.splits import SPLITS
from sousa_engine.data.synth import ClipPlan
from sousa_engine.workspace import Workspace, intake, run_files, spool
from sousa_engine.workspace.intake import Intake, Tell

METHOD = 2  # increased when the same clips and splits would give different results
MAJORITY, POOLED, ONSETS = "majority", "pooled-log-mel", "onset-sequence"
TITLES = {MAJORITY: "Majority class", POOLED: "Pooled log-mel statistics", ONSETS: "Onset sequence"}
LISTENING, CHOOSING = "listening", "choosing"  # the phases that `tell` receives: counts of clips, then of fits

_RESULT, _FIGURES = "result.json", "figures.part"
TREES = 400
_TREES_BYTES = 512 * 2**20  # at most, for all nodes together
_STEPS = 500  # at most, of a logistic regression
MOST_CLIPS = {"train": 20_000, "valid": 5_000}  # of larger splits, a fixed, class-balanced sample
BATCH = 16  # clips
_POOL_FROM = 400  # clips; fewer are analysed before worker processes would have started
_MOST_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One baseline on test. how: the selected classifier, in a few words. tried: candidate -> its accuracy on valid."""

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
        """The title for use within a sentence or a chart: `onset sequence`."""
        return self.title.removesuffix(" statistics").lower()

    @property
    def accuracy(self) -> Proportion:
        """Test accuracy with its 95 % interval (Wilson)."""
        return wilson(self.right, self.n)


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """All baselines of a data set and split, simplest first. compute_s: duration of the last attempt.

    test_key: of the test clips, see `test_key`.
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
        """One for every test clip, in the same form as a run's, so that analysis.significance.paired takes both."""
        return spool.read_predictions(self.folder / f"{name}.jsonl")


def find(workspace: Workspace, config: RunConfig) -> tuple[Baseline, ...]:
    """The baselines of the data set and split of `config`, simplest first; () if there are none or the data is gone.

    Opens the data set, which may read the header of every file. The clips may have changed since a run was tested: see
    `of_clips`.
    """
    folder = folder_for(config.data, workspace)
    found = read(folder) if folder else None
    return found.baselines if found else ()


def of_clips(found: Baselines, predictions: Iterable[Prediction]) -> bool:
    """Whether a run's test predictions are for exactly the clips and labels of these baselines."""
    return test_key(predictions) == found.test_key


def cached(manifest: Manifest, workspace: Workspace) -> Baselines | None:
    """The baselines of exactly these clips, labels and splits; None if not computed. Reads one small file."""
    return read(folder_of(manifest, workspace))


def look(manifest: Manifest, workspace: Workspace) -> Intake | None:
    """The progress of a running computation, or why the last one ended; None if there is neither.

    Its `doing` is LISTENING or CHOOSING.
    """
    return intake.look(folder_of(manifest, workspace))


def folder_of(manifest: Manifest, workspace: Workspace) -> Path:
    """Where the baselines of these clips, labels and splits are kept; the name is a hash of these."""
    key = hashlib.sha256(f"{METHOD}\n{manifest.content_key}\n{manifest.split_key}\n".encode()).hexdigest()
    return workspace.cache / "baselines" / key[:32]


def folder_for(data: DataConfig, workspace: Workspace) -> Path | None:
    """Like `folder_of`, for a run's `config.data`; None if the data set cannot be opened any more.

    A page should cache the result, because this may read the header of every file.
    """
    try:
        return folder_of(DataSet.open(data, workspace).manifest, workspace)
    except UserError:
        return None


def read(folder: Path) -> Baselines | None:
    """The baselines in `folder`; None if they are not computed yet."""
    facts = run_files.read_json(folder / _RESULT)
    if facts is None:
        return None
    baselines = tuple(Baseline(**one) for one in facts.pop("baselines"))
    return Baselines(**facts, baselines=baselines, folder=folder)


def test_key(predictions: Iterable[Prediction]) -> str:
    """32 hex digits that identify the clips and their labels, in any order."""
    clips = sorted(f"{one.clip_id}\0{one.label}\n" for one in predictions)
    return hashlib.sha256("".join(clips).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def compute(
    manifest: Manifest, workspace: Workspace, *, tell: Tell | None = None, lock_fd: int | None = None
) -> Baselines:
    """The baselines, from the cache or computed now. Waits while another process computes the same ones.

    tell(doing, done, total): LISTENING counts clips, then CHOOSING counts fits. lock_fd: of intake.lock, inherited from
    the parent process. Clips that an interrupted attempt has analysed are not analysed again. Raises DataError for
    clips that cannot be read and for a full disk, WorkspaceError for a folder that cannot be written to.
    """
    folder = folder_of(manifest, workspace)
    try:
        if lock_fd is None and (found := read(folder)):
            return found
        with intake.taking_in(folder, lock_fd=lock_fd, tell=tell) as told:
            if found := read(folder):
                return found
            began = time.monotonic()
            chosen = choose_clips(manifest)
            pattern, pooled = _figures(manifest, chosen, folder, told)
            measured = measure(manifest, chosen, pattern, pooled, told)
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


# Analysing clips


class Chosen(NamedTuple):
    """The clips that are analysed. clips: (n,) ascending positions in manifest.clips; splits: (n,) their splits."""

    clips: np.ndarray
    splits: np.ndarray

    def of(self, split: str) -> np.ndarray:
        """Positions in `clips`."""
        return np.flatnonzero(self.splits == split)


def choose_clips(manifest: Manifest) -> Chosen:
    """All clips of test; at most MOST_CLIPS of train and of valid."""
    rng = np.random.default_rng(0)
    y, parts = np.array(manifest.class_numbers()), []
    for split in SPLITS:
        clips = np.array(manifest.indices(split))
        if len(clips) > (most := MOST_CLIPS.get(split, len(clips))):
            clips = rng.permutation(clips)
            nth = np.zeros(len(clips), dtype=int)  # rank within its class: the first clips of all classes come first
            for label in range(len(manifest.classes)):
                own = np.flatnonzero(y[clips] == label)
                nth[own] = np.arange(len(own))
            clips = clips[np.argsort(nth, kind="stable")[:most]]
        parts.append(clips)
    order = np.sort(np.concatenate(parts))
    return Chosen(order, np.array([manifest.clips[i].split for i in order]))


def _figures(manifest: Manifest, chosen: Chosen, folder: Path, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """(clips, rhythm.PATTERN) and (clips, rhythm.POOLED) float32, in the order of chosen.clips.

    Rows are appended to a file at once, so that the next attempt continues where this one was interrupted.
    """
    path, width, total = folder / _FIGURES, rhythm.PATTERN + rhythm.POOLED, len(chosen.clips)
    broken: list[str] = []
    with path.open("ab") as file:
        done = file.tell() // (4 * width)
        file.truncate(4 * width * done)  # an incomplete row of a killed process
        tell(LISTENING, done, total)
        for rows, failures in _analysed([manifest.clips[i].source for i in chosen.clips[done:]], manifest.clip_s):
            broken += failures
            if broken:
                continue  # only to collect the names of all such clips
            file.write(rows.tobytes())
            file.flush()
            done += len(rows)
            tell(LISTENING, done, total)
    if broken:
        more = f" And {len(broken) - 3} more." if len(broken) > 3 else ""
        raise DataError(" ".join(broken[:3]) + more)
    figures = np.fromfile(path, dtype=np.float32).reshape(total, width)
    return figures[:, : rhythm.PATTERN], figures[:, rhythm.PATTERN :]


def _analysed(sources: list[ClipPlan | Path], clip_s: float) -> Iterator[tuple[np.ndarray, list[str]]]:
    """The features of batches of clips, in order, and error messages for clips that have none."""
    batches = [sources[i : i + BATCH] for i in range(0, len(sources), BATCH)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(sources) < _POOL_FROM:
        yield from (_analyse(batch, clip_s) for batch in batches)
        return
    workers = min(cores, _MOST_WORKERS)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=features.follow_parent)
    try:
        yield from pool.map(_analyse, batches, [clip_s] * len(batches))
    except BrokenProcessPool:
        raise DataError(
            "A process that analysed clips was killed, perhaps for lack of memory. Try again: finished clips are kept."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _analyse(sources: list[ClipPlan | Path], clip_s: float) -> tuple[np.ndarray, list[str]]:
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


# Fitting classifiers


def measure(
    manifest: Manifest, chosen: Chosen, pattern: np.ndarray, pooled: np.ndarray, tell: Tell
) -> list[tuple[Baseline, list[Prediction]]]:
    """Each baseline with its test predictions. Only the classifier selected on valid is measured on test.

    pattern, pooled: a row for each of chosen.clips.
    """
    most = max(range(len(manifest.classes)), key=lambda i: manifest.counts[manifest.classes[i]]["train"])
    always = np.zeros((len(chosen.of("test")), len(manifest.classes)))
    always[:, most] = 1.0
    found = [_result(manifest, MAJORITY, always, f"always {manifest.classes[most]}", {})]

    y = np.array(manifest.class_numbers())[chosen.clips]
    train, valid, test = (chosen.of(split) for split in SPLITS)
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

    # A node holds a share for each class; without a limit, 20,000 clips of 40 classes would need 5 GB of trees.
    leaves = max(2, _TREES_BYTES // (TREES * 2 * 8 * len(manifest.classes)))
    return {"extra trees": lambda: ExtraTreesClassifier(TREES, max_leaf_nodes=leaves, random_state=0, n_jobs=-1)}


def _result(
    manifest: Manifest, name: str, probabilities: np.ndarray, how: str, tried: Mapping[str, float]
) -> tuple[Baseline, list[Prediction]]:
    """probabilities: (test clips, classes). Macro-F1 is over the classes in test, as for runs."""
    from sklearn.metrics import f1_score

    test = manifest.indices("test")
    truth, predicted = np.array(manifest.class_numbers())[list(test)], probabilities.argmax(axis=1)
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
    """`extra trees; best of 3 on valid (84.1%)`; only the name if there was no choice."""
    if not one.tried:
        return one.how
    return f"{one.how}; best of {len(one.tried)} on valid ({one.tried[one.how]:.1%})"
