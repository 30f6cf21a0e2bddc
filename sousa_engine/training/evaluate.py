"""Evaluate a network on one split: every clip once, in order, without augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Tensor], Tensor]
"""(module, raw log-mel (batch, frames, mel bins)) -> logits (batch, classes)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """loss: mean of the training loss. predicted: (clips,) class index. probabilities: (clips, classes). n: clips."""

    n: int
    loss: float
    accuracy: float
    macro_f1: float
    predicted: np.ndarray
    probabilities: np.ndarray

    def as_metrics(self, split: str) -> dict[str, float]:
        return {
            f"{split}/loss": self.loss,
            f"{split}/accuracy": self.accuracy,
            f"{split}/macro_f1": self.macro_f1,
        }


def evaluate(
    module: nn.Module,
    forward: Forward,
    features: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    *,
    device: torch.device,
    batch_size: int,
    label_smoothing: float,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluate the clips `indices`; None if stop(), which is asked before each batch, returns True.

    F1 is averaged over the classes that these clips have.
    """
    was_training = module.training
    module.eval()
    rows, total_loss, stopped = [], 0.0, False
    with torch.no_grad():
        for start in range(0, len(indices), batch_size):
            if stopped := stop():
                break
            rows_here = indices[start : start + batch_size]
            batch = torch.from_numpy(features[rows_here].astype(np.float32)).to(device)
            target = torch.from_numpy(labels[rows_here]).to(device)
            logits = forward(module, batch).float()
            loss = nn.functional.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="sum")
            total_loss += loss.item()
            rows.append(logits.softmax(-1).cpu().numpy())
    module.train(was_training)
    if stopped:
        return None
    probabilities = np.concatenate(rows)
    predicted = probabilities.argmax(1)
    truth = labels[indices]
    return Evaluation(
        n=len(indices),
        loss=total_loss / len(indices),
        accuracy=float((predicted == truth).mean()),
        macro_f1=macro_f1(truth, predicted),
        predicted=predicted,
        probabilities=probabilities,
    )


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over the classes in `truth` of 2 * right / (clips of the class + clips taken for it).

    Equal to scikit-learn's f1_score, whose import takes seconds and draws from Python's random numbers, on which a
    network's own may depend: a training that was resumed would then go on with others.
    """
    size = 1 + max(truth.max(), predicted.max())
    parts = truth[truth == predicted], truth, predicted
    right, of_class, taken = (np.bincount(part, minlength=size) for part in parts)
    there = of_class > 0
    return float((2 * right[there] / (of_class + taken)[there]).mean())
