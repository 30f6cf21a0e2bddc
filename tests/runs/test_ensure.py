"""A supervisor is started where there is work, once, whoever asks."""

from __future__ import annotations

import os

import pytest
from seeding import begin_at_once, queued
from waiting import wait_for

from sousa_engine.core.records import RunStatus, SweepStatus
from sousa_engine.runs import ensure
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import locks


def test_a_supervisor_is_started_again_only_where_there_is_work(workspace, ensured):
    assert not ensure.revive(workspace) and not workspace.db.exists()  # looking makes nothing
    with Store.open(workspace) as store:
        assert not ensure.revive(workspace)
        (run_id,) = queued(store, 1)
        assert ensure.revive(workspace) and ensured == [workspace]
        store.queue.pause()
        assert not ensure.revive(workspace)
        store.queue.resume()
        Ledger(store).claim("cpu", "n")
        assert ensure.revive(workspace)  # one lives
        Ledger(store).finish(run_id, RunStatus.FINISHED, None, nonce="n")
        assert not ensure.revive(workspace)
        sweep = store.sweeps.add("s", {}, [], created_by="page")
        assert ensure.revive(workspace)
        store.sweeps.set_status(sweep.id, SweepStatus.FINISHED, leaving=[SweepStatus.RUNNING])
        assert not ensure.revive(workspace)


_CLICK = """
import sys
from pathlib import Path
from sousa_engine.runs import ensure
from sousa_engine.core.config import build
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace
workspace = Workspace(root=Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for click in range(30):
    with Store.open(workspace) as store:
        store.runs.enqueue(build({"name": "steps=1 pause_s=0"}), form_token=f"form {click % 5}")
    ensure.ensure(workspace, ["--trainer-module", "tests.fake_trainer", "--idle-exit-s", "3"])
"""


@pytest.mark.process
def test_two_servers_on_one_workspace_make_and_start_each_run_once(workspace):
    """30 clicks in each of two processes at once, on the same five forms."""
    begin_at_once(_CLICK, workspace, timeout_s=120)
    with Store.open(workspace) as store:
        runs = store.runs.all()
        assert len(runs) == 5
        wait_for(lambda: all(run.status.is_over for run in store.runs.all()))
        for run in store.runs.all():
            assert (run.status, run.attempts) == (RunStatus.FINISHED, 1)
            assert [event.kind for event in store.runs.events(run.id)].count("claimed") == 1
    wait_for(lambda: supervisor_left(workspace))


def supervisor_left(workspace):
    lock = locks.take(workspace.supervisor_lock)
    if lock is not None:
        os.close(lock)
    return lock is not None
