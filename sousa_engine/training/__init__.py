"""The training loop: features in, curves and a checkpoint out. Knows no database and no page."""

__all__ = ["adapters", "checkpoint", "evaluate", "loop", "precision", "reporters", "resume", "statistics"]
