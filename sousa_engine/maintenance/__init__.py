"""Maintenance of a workspace and an installation: doctor, and check, backup, rebuild and restore of runs.db."""

# pyright: reportUnsupportedDunderAll=false
# Some names are modules, which are imported only where they are needed.
__all__ = ["check", "doctor", "rebuild", "restore"]
