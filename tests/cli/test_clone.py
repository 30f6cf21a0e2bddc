"""The command clone, also of all runs that failed."""

from __future__ import annotations

from seeding import queue_order, queued

from sousa_engine.core.config import build
from sousa_engine.core.records import RunStatus, SweepRun
from sousa_engine.store.ledger import Ledger


def test_runs_that_failed_are_queued_again(sousa, store):
    assert "No run failed or was lost" in sousa("clone", "--failed", code=2)
    failed, fine, lost = queued(store, 3)
    sweep = store.sweeps.add("s", {}, [SweepRun(build({}), 0, {})], created_by="cli")
    of_sweep = store.sweeps.runs(sweep.id)[0].id
    for run_id, status in (
        (failed, RunStatus.FAILED), (fine, RunStatus.FINISHED), (lost, RunStatus.LOST), (of_sweep, RunStatus.FAILED),
    ):  # fmt: skip
        assert Ledger(store).claim("cpu", "n").id == run_id and Ledger(store).finish(run_id, status, "x", nonce="n")
    assert sousa("clone", "--failed").count(" queued: ") == 2
    assert [row.seed for row in store.queue.waiting()] == [0, 2]
    assert "not both" in sousa("clone", code=2) and "not both" in sousa("clone", fine, "--failed", code=2)
    assert " queued: " in sousa("clone", fine, "seed=8")
    assert [row.seed for row in store.queue.waiting()] == [0, 2, 8]


def test_a_failed_run_is_queued_again_once(sousa, store):
    def end(run_id, status):
        assert Ledger(store).claim("cpu", "n").id == run_id and Ledger(store).finish(run_id, status, "x", nonce="n")

    def retried():
        before = queue_order(store)
        said = sousa("clone", "--failed").splitlines()
        return [run_id for run_id in queue_order(store) if run_id not in before], said

    first, second = queued(store, 2)
    end(first, RunStatus.FAILED)
    end(second, RunStatus.LOST)
    (a, b), _ = retried()
    assert [event.message for event in store.runs.events(a) if event.kind == "retry of"] == [first]
    nothing, said = retried()
    assert not nothing and said[:2] == [
        f"{first} is skipped: its clone {a} is queued.",
        f"{second} is skipped: its clone {b} is queued.",
    ]
    assert "clone RUN" in said[2]
    end(a, RunStatus.FAILED)  # it alone goes on for the first one
    end(b, RunStatus.FINISHED)
    (c,), said = retried()
    assert [event.message for event in store.runs.events(c) if event.kind == "retry of"] == [a]
    assert said[:2] == [
        f"{first} is skipped in favour of its clone {a}, which failed too.",
        f"{second} is skipped: its clone {b} is finished.",
    ]
    nothing, said = retried()
    assert not nothing and f"{first} is skipped: its clone {c} is queued." in said
    sousa("stop", c)  # taken out: nobody makes up for the second try any more
    (d,), _ = retried()
    end(d, RunStatus.FAILED)
    store.marks.archive([a, d])  # out of sight: the first one is what is seen to have failed
    (e,), _ = retried()
    assert [event.message for event in store.runs.events(e) if event.kind == "retry of"] == [first]
    assert sousa("clone", first, first).count(" queued: ") == 2  # by its id, always


def test_a_changed_clone_is_no_retry_unless_all_that_failed_are_changed(sousa, store):
    (failed,) = queued(store, 1)
    assert Ledger(store).claim("cpu", "n") and Ledger(store).finish(failed, RunStatus.FAILED, "x", nonce="n")
    assert " queued: " in sousa("clone", failed, "seed=8")
    assert sousa("clone", "--failed", "training.max_epochs=2").count(" queued: ") == 1
    assert "There is no run left" in sousa("clone", "--failed")
    assert [list(store.runs.retries().values()), store.queue.count()] == [[failed], 2]
