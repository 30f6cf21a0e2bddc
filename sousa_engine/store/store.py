"""The store of runs and their results: runs.db, opened through sqlite-utils.

A Store has its own connection, belongs to one thread and is closed after use. Opening one takes under a millisecond.

    with Store.open(workspace) as store:
        run = store.runs.enqueue(config)
        curve = store.metrics.curve(run.id, "train/loss")
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from sousa_engine.core.errors import WorkspaceError
from sousa_engine.store import migrations, trash
from sousa_engine.store.connection import Connection, now_ms
from sousa_engine.store.marks import Marks, settle_trash
from sousa_engine.store.metrics import Metrics
from sousa_engine.store.queue import Queue
from sousa_engine.store.runs import Runs
from sousa_engine.store.sweeps import Sweeps
from sousa_engine.store.target_sets import TargetSets
from sousa_engine.workspace import Workspace


class Store:
    """The parts runs, queue, sweeps, marks, metrics and target_sets, on one connection."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.workspace = connection.workspace
        self.runs = Runs(connection)
        self.queue = Queue(connection)
        self.sweeps = Sweeps(connection)
        self.marks = Marks(connection)
        self.metrics = Metrics(connection)
        self.target_sets = TargetSets(connection)

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        *,
        readonly: bool = False,
        checkpoints: bool = False,
        clock_ms: Callable[[], int] = now_ms,
    ) -> Store:
        """Open runs.db, and create or upgrade it first if needed (unless `readonly`).

        checkpoints: see `migrations.open_database`. Raises WorkspaceError for a read-only folder (unless `readonly`),
        a newer schema or another program's database.
        """
        db = migrations.open_database(workspace, readonly=readonly, checkpoints=checkpoints)
        store = cls(Connection(db, workspace, clock_ms))
        if not readonly and trash.found(workspace):
            with trash.alone(workspace, wait=False) as acquired:
                if acquired:
                    settle_trash(store.connection)  # a deletion was interrupted
        return store

    @classmethod
    def open_to_read(cls, workspace: Workspace) -> Store:
        """Like `open`, but falls back to read-only access."""
        try:
            return cls.open(workspace)
        except WorkspaceError:
            if not migrations.read_only(workspace):
                raise
            return cls.open(workspace, readonly=True)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
