"""Confidence intervals: Wilson's for one accuracy, a paired one for two runs on the same clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sousa_engine.analysis import same_data
from sousa_engine.core.records import Prediction, Summary

Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """right of n, with its 95 % interval; value, low and high in [0, 1]."""

    right: int
    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Second minus first run on the same n clips; difference, low and high are shares in [-1, 1]."""

    n: int
    only_first: int  # clips the first run alone got right
    only_second: int
    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def wilson(right: int, n: int, z: float = Z95) -> Proportion:
    """Wilson's score interval of right / n. Raises ValueError unless 0 <= right <= n and n > 0.

    Source: Wilson 1927. Unlike the normal interval it is within [0, 1] and valid for small n. scipy's binomtest gives
    the same result (tested), but takes a second to import and 1 ms per interval; a table of classes needs hundreds.
    """
    if n <= 0 or not 0 <= right <= n:
        raise ValueError(f"{right} of {n} is not a proportion: n must be above 0, and right between 0 and n.")
    return wilson_of_mean(right / n, n, z)


def wilson_of_mean(share: float, n: int, z: float = Z95) -> Proportion:
    """Wilson's interval of a mean accuracy over seeds with the same n clips; share * n need not be an integer.

    It reflects the sample of clips, not variation between seeds. Raises ValueError unless 0 <= share <= 1 and n > 0.
    """
    if n <= 0 or not 0 <= share <= 1:
        raise ValueError(f"{share} of {n} clips is not a proportion: n must be above 0, and the share in [0, 1].")
    z2 = z * z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if share == 0 else max(0.0, middle - half)
    high = 1.0 if share == 1 else min(1.0, middle + half)
    return Proportion(right=round(share * n), n=n, value=share, low=low, high=high)


def last_accuracy(summary: Summary | None) -> Proportion | None:
    """The last value of an accuracy as a proportion of its clips; None if it or its n is missing."""
    return None if summary is None else _accuracy(summary.last, summary.n)


def best_accuracy(summary: Summary | None) -> Proportion | None:
    return None if summary is None else _accuracy(summary.best, summary.n)


def paired(first: Sequence[Prediction], second: Sequence[Prediction], z: float = Z95) -> PairedDifference | None:
    """Difference of two accuracies on exactly the same clips; None if their sounds or labels differ.

    Where the sounds were not recorded, clips are told by their names (see same_data.keyed).

    Source: Bonett and Price 2012, adjusted Wald interval for a difference of paired proportions.
    """
    a, b = ({key: p.predicted == p.label for key, p in found.items()} for found in same_data.keyed([first, second]))
    if not a or a.keys() != b.keys():
        return None
    only_first = sum(a[clip] and not b[clip] for clip in a)
    only_second = sum(b[clip] and not a[clip] for clip in a)
    n = len(a)
    p12, p21 = (only_second + 1) / (n + 2), (only_first + 1) / (n + 2)
    half = z * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    return PairedDifference(
        n=n,
        only_first=only_first,
        only_second=only_second,
        difference=(only_second - only_first) / n,
        low=max(-1.0, p12 - p21 - half),
        high=min(1.0, p12 - p21 + half),
    )


def _accuracy(value: float | None, n: int | None) -> Proportion | None:
    if value is None or not n or not math.isfinite(value):
        return None
    return wilson(min(n, max(0, round(value * n))), n)
