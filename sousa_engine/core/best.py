"""Which epoch of a run is its best: one rule for the trainer, which keeps and tests its checkpoint, and the store."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Epoch(NamedTuple):
    """An evaluation on the valid split. loss: None if it was not measured."""

    step: int
    accuracy: float
    loss: float | None


def rank(accuracy: float, loss: float | None) -> tuple[float, float]:
    """Higher is better: by valid accuracy, then by lower valid loss. Of equal ranks, the earlier epoch is the best."""
    return accuracy, -math.inf if loss is None or math.isnan(loss) else -loss


def best_epoch(epochs: Iterable[Epoch]) -> Epoch | None:
    """The best epoch; those without a finite accuracy never are. None if there is none."""
    finite = (epoch for epoch in epochs if math.isfinite(epoch.accuracy))
    return max(finite, key=lambda epoch: (*rank(epoch.accuracy, epoch.loss), -epoch.step), default=None)
