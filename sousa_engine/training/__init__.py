"""The training loop: features in; curves, checkpoints and an adapter out. Knows no database and no page."""
