"""A confusion matrix from predictions, accuracy per class, and the most frequent errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sousa_engine.analysis.significance import Proportion, wilson
from sousa_engine.core.records import Prediction


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """counts[i][j]: clips of classes[i] that were predicted as classes[j]."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def n(self) -> int:
        return sum(map(sum, self.counts))

    @property
    def right(self) -> int:
        return sum(row[i] for i, row in enumerate(self.counts))


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One class: the share of its clips that was correct, and the most frequent wrong prediction."""

    label: str
    recall: Proportion
    taken_for: str  # "" if no clip was wrong
    taken_for_count: int


@dataclass(frozen=True, kw_only=True)
class Mistake:
    label: str
    predicted: str
    count: int
    n: int  # clips of `label`


@dataclass(frozen=True, kw_only=True)
class ConfusionDifference:
    """Two matrices over the same classes. gains[i][j]: how much better the second is in that cell, in [-1, 1].

    On the diagonal: the second's share of correct clips minus the first's. Off the diagonal: the first's share of this
    error minus the second's. None if neither counted a clip, or if one has no clip of the class.
    """

    first: Confusion
    second: Confusion
    gains: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """An error that one of two makes more often. first, second: (clips, all clips). gain: of the second, a share."""

    label: str
    predicted: str
    first: tuple[int, int]
    second: tuple[int, int]
    gain: float


def confusion(predictions: Sequence[Prediction], classes: Sequence[str] | None = None) -> Confusion:
    """The matrix over `classes`, by default all classes that occur as label or prediction, sorted by name."""
    import pandas as pd  # slow to import, and commands that draw no matrix need none of it

    names = tuple(classes or sorted({p.label for p in predictions} | {p.predicted for p in predictions}))
    table = pd.crosstab(
        pd.Series([p.label for p in predictions], dtype=object),
        pd.Series([p.predicted for p in predictions], dtype=object),
    ).reindex(index=names, columns=names, fill_value=0)
    return Confusion(classes=names, counts=tuple(tuple(int(v) for v in row) for row in table.to_numpy()))


def difference(first: Confusion, second: Confusion) -> ConfusionDifference:
    """Cell by cell, as shares of each row. Raises ValueError if the classes differ."""
    if first.classes != second.classes:
        raise ValueError("The two matrices have different classes. Build both over the union of their classes.")
    gains = tuple(
        tuple(_gain(a, b, i, j) for j in range(len(a)))
        for i, (a, b) in enumerate(zip(first.counts, second.counts, strict=True))
    )
    return ConfusionDifference(first=first, second=second, gains=gains)


def changes(found: ConfusionDifference, limit: int = 8) -> tuple[Change, ...]:
    """The errors whose share differs most between the two, largest difference first."""
    cells = [
        Change(
            label=label,
            predicted=predicted,
            first=(found.first.counts[i][j], sum(found.first.counts[i])),
            second=(found.second.counts[i][j], sum(found.second.counts[i])),
            gain=gain,
        )
        for i, label in enumerate(found.first.classes)
        for j, predicted in enumerate(found.first.classes)
        if i != j and (gain := found.gains[i][j])
    ]
    return tuple(sorted(cells, key=lambda change: (-abs(change.gain), change.label, change.predicted))[:limit])


def class_results(matrix: Confusion) -> tuple[ClassResult, ...]:
    """One row per class with clips, lowest accuracy first."""
    rows = []
    for i, (label, counts) in enumerate(zip(matrix.classes, matrix.counts, strict=True)):
        if not sum(counts):
            continue
        wrong = [(count, -j) for j, count in enumerate(counts) if j != i and count]
        most, at = max(wrong, default=(0, 0))
        rows.append(
            ClassResult(
                label=label,
                recall=wilson(counts[i], sum(counts)),
                taken_for=matrix.classes[-at] if most else "",
                taken_for_count=most,
            )
        )
    return tuple(sorted(rows, key=lambda row: (row.recall.value, row.label)))


def mistakes(matrix: Confusion, limit: int = 10) -> tuple[Mistake, ...]:
    """The most frequent errors, in descending order."""
    found = [
        Mistake(label=matrix.classes[i], predicted=matrix.classes[j], count=count, n=sum(row))
        for i, row in enumerate(matrix.counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return tuple(sorted(found, key=lambda m: (-m.count, m.label, m.predicted))[:limit])


def _gain(first: Sequence[int], second: Sequence[int], i: int, j: int) -> float | None:
    """Cell (i, j) of two rows of counts."""
    if not sum(first) or not sum(second) or not (first[j] or second[j]):
        return None
    more = second[j] / sum(second) - first[j] / sum(first)
    return more if i == j else -more
