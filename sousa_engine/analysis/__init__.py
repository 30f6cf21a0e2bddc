"""Records turned into small typed tables: curves, comparison, confusion, significance. No torch, SQL or streamlit."""

__all__ = [
    "baselines",
    "charts",
    "compare",
    "confusion",
    "cost",
    "curves",
    "export",
    "importance",
    "layers",
    "listen",
    "log",
    "rudiment_groups",
    "scores",
    "settings",
    "significance",
    "sweeps",
    "two_level",
    "verdict",
]
