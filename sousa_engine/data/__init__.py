"""Data sets: clips, labels, splits, the soundness of files, and features. Knows no backbones, storage or training."""

__all__ = [
    "audio",
    "augment",
    "clips",
    "dataset",
    "excerpt",
    "features",
    "findings",
    "layouts",
    "levels",
    "manifest",
    "rhythm",
    "scan",
    "soundness",
    "splits",
    "synth",
    "tables",
]
