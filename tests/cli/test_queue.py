"""The commands queue and stop."""

from __future__ import annotations

from seeding import queue_order, queued

from sousa_engine.core.records import RunStatus
from sousa_engine.store.ledger import Ledger


def test_the_queue_is_shown_ordered_paused_and_gone_on_with(sousa, store, ensured):
    assert "The queue is empty." in sousa("queue")
    first, second, third = queued(store, 3)
    assert sousa("queue", "move", third, "--to", "1") == f"run {third}: position 1 of 3\n"
    lines = sousa("queue").splitlines()
    assert [line.split()[:2] for line in lines if line.strip()[:1].isdecimal()] == [
        ["1", third], ["2", first], ["3", second],
    ]  # fmt: skip
    assert "cpu" in lines[0] and "free" in lines[0]
    assert "1 of 3 queued runs; --limit 3 shows all." in sousa("queue", "show", "--limit", "1")
    assert "no new run starts" in sousa("queue", "pause") and "was already paused" in sousa("queue", "pause")
    assert sousa("queue").startswith("Paused since ")
    assert "Waiting: the queue is paused" in sousa("train", "data=micro", "--detach")
    before = len(ensured)
    assert sousa("queue", "resume") == "Queue resumed.\n" and len(ensured) == before + 1
    assert "2 CPU slots" in sousa("queue", "slots", "2") and store.queue.settings().cpu_slots == 2
    assert "free" in sousa("queue").splitlines()[1]
    assert "must be 1 to 64; 0 is" in sousa("queue", "slots", "0", code=2)
    assert "only queued runs" in (sousa("stop", first) and sousa("queue", "move", first, "--to", "1", code=2))


def test_a_run_in_the_queue_is_named_by_any_part_that_says_which_as_elsewhere(sousa, store):
    first, second, third = queued(store, 3)
    for name, run_id in ((third[-4:], third), (second[-6:], second), ("last", third), (first, first)):
        assert sousa("queue", "move", name, "--to", "1") == f"run {run_id}: position 1 of 3\n"
        assert queue_order(store)[0] == run_id
    assert "matches several runs:" in sousa("queue", "move", first[:6], "--to", "1", code=2)
    assert "No run named 'nobody'" in sousa("queue", "move", "nobody", "--to", "1", code=2)
    assert sousa("stop", second[-4:]) == f"run {second}: stopped\n" and second not in queue_order(store)


def test_stop_now_asks_first(sousa, store):
    (run_id,) = queued(store, 1)
    Ledger(store).claim("cpu", "n")
    assert "No terminal to confirm: add --yes" in sousa("stop", run_id, "--now", code=2)
    assert store.runs.get(run_id).status is RunStatus.STARTING
    assert sousa("stop", run_id) == f"run {run_id}: stopping\n"
    assert store.runs.get(run_id).kill_requested_at_ms is None
    assert sousa("stop", run_id, "--now", "--yes") == f"run {run_id}: stopping\n"
    assert store.runs.get(run_id).kill_requested_at_ms is not None
    waiting = queued(store, 1)[0]
    assert sousa("stop", waiting, "--now") == f"run {waiting}: stopped\n"  # nothing to lose: nothing to ask
