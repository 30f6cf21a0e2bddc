"""What was run and measured, in runs.db: a Store has a part for each subject. All SQL of the engine is here."""

from sousa_engine.store.connection import now_ms
from sousa_engine.store.runs import not_resumable
from sousa_engine.store.store import Store

__all__ = ["Store", "connection", "events", "ledger", "listing", "migrations", "not_resumable", "now_ms", "trash"]
