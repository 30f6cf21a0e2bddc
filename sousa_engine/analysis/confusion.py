"""What was taken for what: a confusion matrix from predictions, its classes and its most frequent mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from sousa_engine.analysis.significance import Proportion, wilson
from sousa_engine.records import Prediction


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """counts[i][j]: clips of classes[i] that were taken for classes[j]."""

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
    """One class: the share of its clips that was recognised, and what the others were mostly taken for."""

    label: str
    recall: Proportion
    taken_for: str  # "" when no clip was mistaken
    taken_for_count: int


@dataclass(frozen=True, kw_only=True)
class Mistake:
    label: str
    predicted: str
    count: int
    n: int  # clips of `label`


def confusion(predictions: Sequence[Prediction], classes: Sequence[str] | None = None) -> Confusion:
    """The matrix over `classes`, or over every class seen as label or prediction, sorted by name."""
    names = tuple(classes or sorted({p.label for p in predictions} | {p.predicted for p in predictions}))
    table = pd.crosstab(
        pd.Series([p.label for p in predictions], dtype=object),
        pd.Series([p.predicted for p in predictions], dtype=object),
    ).reindex(index=names, columns=names, fill_value=0)
    return Confusion(classes=names, counts=tuple(tuple(int(v) for v in row) for row in table.to_numpy()))


def class_results(matrix: Confusion) -> tuple[ClassResult, ...]:
    """One row a class that has clips, weakest first."""
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
    """The most frequent confusions, most frequent first."""
    found = [
        Mistake(label=matrix.classes[i], predicted=matrix.classes[j], count=count, n=sum(row))
        for i, row in enumerate(matrix.counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return tuple(sorted(found, key=lambda m: (-m.count, m.label, m.predicted))[:limit])
