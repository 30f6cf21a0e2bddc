"""What was run and measured, in runs.db: one connection a thread, opened in under a millisecond. All SQL is here."""

from sousa_engine.core.records import Launch, SweepRun
from sousa_engine.store.store import Store, not_resumable, now_ms

__all__ = ["Launch", "Store", "SweepRun", "not_resumable", "now_ms"]
