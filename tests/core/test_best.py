"""The best epoch: highest accuracy, then lowest loss, then the earliest."""

from __future__ import annotations

import math

import pytest

from sousa_engine.core.best import Epoch, best_epoch, rank


@pytest.mark.parametrize(
    ("epochs", "step"),
    [
        ([(10, 0.5, 1.0), (20, 0.6, 2.0), (30, 0.55, 0.5)], 20),
        ([(10, 0.6, 1.9), (20, 0.6, 1.1), (30, 0.6, 1.3)], 20),
        ([(10, 0.6, 1.1), (20, 0.6, 1.1)], 10),
        ([(10, 0.6, None), (20, 0.6, 5.0)], 20),
        ([(10, 0.6, math.nan), (20, 0.6, 5.0)], 20),
        ([(10, math.nan, 0.1), (20, 0.0, 9.0)], 20),
    ],
)
def test_the_epoch_whose_checkpoint_is_kept(epochs, step):
    found = best_epoch(Epoch(*epoch) for epoch in epochs)
    assert found is not None and found.step == step
    kept, key = None, (-1.0, -math.inf)  # as the trainer meets them, one by one
    for at, accuracy, loss in epochs:
        if rank(accuracy, loss) > key:
            kept, key = at, rank(accuracy, loss)
    assert kept == step


def test_without_a_measured_epoch_there_is_no_best():
    assert best_epoch([]) is None and best_epoch([Epoch(1, math.nan, 1.0)]) is None
