"""Runs from draft to end: checks, queue, supervisor, keeper, trainer, sweeps. Imports nothing, for the keeper."""

# pyright: reportUnsupportedDunderAll=false
# Some names are modules, which are imported only where they are needed.
__all__ = [
    "background",
    "ending",
    "ensure",
    "executors",
    "orders",
    "preflight",
    "prepare",
    "problems",
    "sweep_learner",
    "sweep_orders",
    "sweep_plan",
    "sweep_words",
    "timing",
]
