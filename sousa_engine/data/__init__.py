"""Clips, labels, splits and features: everything a training reads."""

__all__ = [
    "audio",
    "augment",
    "clips",
    "excerpt",
    "features",
    "findings",
    "manifest",
    "rhythm",
    "scan",
    "soundness",
    "splits",
    "synth",
]
