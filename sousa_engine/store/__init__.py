"""Runs and their results in runs.db: a Store with one part per subject. All SQL of the engine is in this package."""

from sousa_engine.store.connection import now_ms
from sousa_engine.store.runs import not_resumable
from sousa_engine.store.store import Store

__all__ = [
    "Store",
    "connection",
    "events",
    "ledger",
    "listing",
    "migrations",
    "not_resumable",
    "now_ms",
    "rows",
    "trash",
]
