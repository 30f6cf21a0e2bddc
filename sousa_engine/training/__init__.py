"""The training loop: features in; curves, checkpoints and an adapter out. Knows no database and no page."""

__all__ = [
    "adapters",
    "checkpoint",
    "evaluate",
    "loop",
    "precision",
    "randomness",
    "reporters",
    "resume",
    "statistics",
]
