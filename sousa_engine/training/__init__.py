"""The training loop: features in, curves and a checkpoint out. Knows no database and no page."""
