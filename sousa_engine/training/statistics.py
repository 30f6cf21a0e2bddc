"""BatchNorm statistics for random weights: measured once on clips, because there was no pre-training."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCHES = 8


def measure_statistics(module: nn.Module, features: np.ndarray, rows: np.ndarray, *, batch_size: int) -> int:
    """Set each BatchNorm's mean and variance to the average over the first BATCHES batches of these clips.

    Otherwise the signal of a random network with frozen statistics (mean 0, variance 1) fades out within a few layers,
    and the network would be no fair control. features: (clips, frames, mel bins) raw log-mel. Returns the number of
    BatchNorms.
    """
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    with torch.no_grad():
        for start in range(0, min(len(rows), BATCHES * batch_size), batch_size):
            batch = features[rows[start : start + batch_size]].astype(np.float32)
            module(features=torch.from_numpy(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
    return len(norms)
