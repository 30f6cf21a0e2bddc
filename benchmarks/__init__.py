"""Measurements behind README, and the scripts that made its pictures and the embedded weights."""
