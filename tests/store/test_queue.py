"""The queue in the store: its order, its pause, its slots, and forms that are sent more than once."""

from __future__ import annotations

import json

import pytest
from seeding import old_database, queue_order, queued

from sousa_engine.core.config import RunConfig, build
from sousa_engine.core.errors import UnknownNameError, UserError
from sousa_engine.core.records import RunStatus, SweepRun
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger

# Order


def test_runs_start_in_the_order_they_were_queued_whatever_the_clock_says(workspace):
    clock = iter(range(10_000, 0, -1))  # set back again and again
    with Store.open(workspace, clock_ms=lambda: next(clock)) as store:
        ids = queued(store)
        assert queue_order(store) == ids
        assert [Ledger(store).claim(f"cuda:{i}", str(i), ["auto"]).id for i in range(5)] == ids


def test_a_resumed_run_waits_behind_the_others_whatever_the_clock_says(workspace):
    clock = iter(range(1_000_000, 0, -1_000))  # set back again and again
    with Store.open(workspace, clock_ms=lambda: next(clock)) as store:
        early, *others = queued(store, 3)
        Ledger(store).claim("cpu", "n")
        Ledger(store).finish(early, RunStatus.STOPPED, "Stopped.", nonce="n")
        store.runs.resume(early, "Resumed.")
        late = store.runs.enqueue(RunConfig()).id
        assert queue_order(store) == [*others, early, late]


def test_a_run_moves_to_any_place_and_claims_follow(store):
    a, b, c, d, e = queued(store)
    assert store.queue.move(d, 1) == 1 and queue_order(store) == [d, a, b, c, e]
    assert store.queue.move(a, 4) == 4 and queue_order(store) == [d, b, c, a, e]
    assert store.queue.move(b, 99) == 5 and queue_order(store) == [d, c, a, e, b]
    assert store.queue.move_by(e, -1) == 3 and queue_order(store) == [d, c, e, a, b]
    assert store.queue.move_by(d, 1) == 2 and queue_order(store) == [c, d, e, a, b]
    assert store.queue.move_by(c, -1) == 1 and queue_order(store) == [c, d, e, a, b]
    late = store.runs.enqueue(RunConfig()).id
    assert queue_order(store)[-1] == late and store.queue.count() == 6
    assert [row.id for row in store.queue.waiting(2)] == [c, d]
    assert Ledger(store).claim("cpu", "n").id == c
    assert [event.message for event in store.runs.events(d) if event.kind == "moved"][
        -1
    ] == "Moved to place 2 in the queue."


def test_runs_that_share_a_place_as_of_old_are_drawn_apart(store):
    ids = queued(store, 4)
    store.connection.db.execute("UPDATE runs SET queue_position = 7")
    assert store.queue.move(ids[3], 2) == 2 and queue_order(store) == [ids[0], ids[3], ids[1], ids[2]]
    assert store.queue.move_by(ids[0], 1) == 2 and queue_order(store) == [ids[3], ids[0], ids[1], ids[2]]


def test_only_what_waits_can_be_moved(store):
    first, second = queued(store, 2)
    Ledger(store).claim("cpu", "n")
    with pytest.raises(UserError, match=f"Run {first} is starting: only queued runs"):
        store.queue.move(first, 2)
    with pytest.raises(UnknownNameError):
        store.queue.move("nobody", 1)
    assert queue_order(store) == [second]


def test_a_database_from_before_the_queue_keeps_its_order(workspace):
    old = old_database(workspace, 3)
    for number, position in enumerate((30, 10, 10, 20)):
        old.execute(
            "INSERT INTO runs (id, name, status, wanted_device, queue_position, created_by, created_at_ms, config_json)"
            " VALUES (?, '', 'queued', 'auto', ?, 'cli', ?, ?)",
            [f"run-{number}", position, number, RunConfig().model_dump_json()],
        )
    old.conn.commit()
    old.close()
    with Store.open(workspace) as store:
        assert queue_order(store) == ["run-1", "run-2", "run-3", "run-0"]
        assert (store.queue.settings().is_paused, store.queue.settings().cpu_slots) == (False, 1)
        assert store.queue.move("run-2", 1) == 1 and queue_order(store) == ["run-2", "run-1", "run-3", "run-0"]


# Pause


def test_nothing_is_claimed_while_the_queue_is_paused(store):
    (run_id,) = queued(store, 1)
    store.queue.pause()
    assert store.queue.settings().is_paused and store.queue.waiting_devices() == ()
    assert Ledger(store).claim("cpu", "n") is None
    assert store.runs.request_stop(run_id, at_once=True).status is RunStatus.STOPPED  # a paused run can be taken out
    assert store.runs.events(run_id)[-1].message == "Removed from the queue."  # nothing was there to be saved
    (other,) = queued(store, 1)
    store.queue.resume()
    assert store.queue.settings().paused_at_ms is None and Ledger(store).claim("cpu", "n").id == other


def test_the_number_of_cpu_slots_has_bounds(store):
    store.queue.set_cpu_slots(4)
    for wrong in (0, -1, 65):
        with pytest.raises(UserError, match=f"must be 1 to 64; {wrong} is"):
            store.queue.set_cpu_slots(wrong)
    assert store.queue.settings().cpu_slots == 4


# A stop


def test_a_stop_of_an_earlier_launch_is_no_stop_of_the_next(store):
    (run_id,) = queued(store, 1)
    Ledger(store).claim("cpu", "n1")
    store.runs.request_stop(run_id, at_once=True)
    store.connection.db.execute("UPDATE runs SET status = 'queued', slot = NULL")  # taken up again
    run = Ledger(store).claim("cpu", "n2")
    assert (run.stop_requested_at_ms, run.kill_requested_at_ms) == (None, None)
    assert json.dumps(run.facts) == "{}"


# Forms


def test_a_form_sent_often_makes_one_run_and_the_next_form_another(store):
    made = {store.runs.enqueue(build({"seed": seed}), form_token="a").id for seed in range(30)}
    assert len(made) == 1 and len(store.runs.all()) == 1
    other = store.runs.enqueue(RunConfig(), form_token="b").id
    assert {other} | made == {run.id for run in store.runs.all()}
    assert len({store.runs.enqueue(RunConfig()).id for _ in range(3)}) == 3  # without a form, each call is meant


def test_a_form_that_makes_several_makes_each_once(store):
    first = store.runs.enqueue_all([build({"seed": 1}), build({"seed": 2})], form_token="a")
    again = store.runs.enqueue_all([build({"seed": 1}), build({"seed": 2})], form_token="a")
    assert first == again and [run.config.seed for run in store.runs.all(newest_first=False)] == [1, 2]


def test_a_sweep_sent_often_is_one_sweep(store):
    runs = [SweepRun(build({"seed": seed}), 0, {}) for seed in (1, 2)]
    made = {store.sweeps.add("s", {}, runs, created_by="page", form_token="a").id for _ in range(30)}
    assert len(made) == 1
    (sweep_id,) = made
    again = {store.sweeps.extend(sweep_id, runs, created_by="page", form_token="b") for _ in range(30)}
    assert len(again) == 1 and len(store.sweeps.runs(sweep_id)) == 4
