"""Data sets: clips, labels, splits, the soundness of files, and features. Knows no backbones, storage or training."""
