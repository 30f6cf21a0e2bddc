"""Clips, labels, splits and features: everything a training reads."""
