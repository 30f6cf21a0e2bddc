"""Records turned into small typed tables: curves, comparison, confusion, significance. No torch, SQL or streamlit."""

__all__ = [
    "baselines",
    "charts",
    "compare",
    "confusion",
    "cost",
    "curves",
    "export",
    "families",
    "importance",
    "layers",
    "listen",
    "log",
    "scores",
    "settings",
    "significance",
    "sweeps",
    "two_level",
    "verdict",
]
