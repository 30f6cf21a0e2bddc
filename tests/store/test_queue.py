"""The queue: its order, its pause, its slots, and forms that are sent more than once. Store and command line."""

from __future__ import annotations

import json
import os
import time

import pytest
from click.testing import CliRunner
from seeding import begin_at_once

from sousa_engine.cli.main import main
from sousa_engine.core import config, grammar
from sousa_engine.core.config import RunConfig, build
from sousa_engine.core.errors import ConfigError, PreflightError, UnknownNameError, UserError
from sousa_engine.core.records import RunStatus, SweepRun, SweepStatus
from sousa_engine.runs import ensure, orders, prepare
from sousa_engine.store import Store, migrations
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import locks


@pytest.fixture
def store(workspace):
    with Store.open(workspace) as opened:
        yield opened


@pytest.fixture
def ensured(monkeypatch):
    """Workspaces that a supervisor was started for; none really starts."""
    found = []
    monkeypatch.setattr(ensure, "ensure", lambda workspace: bool(found.append(workspace)) or True)
    return found


@pytest.fixture
def sousa(workspace, ensured):
    def call(*words, code=0, **options):
        done = CliRunner().invoke(main, ["--workspace", str(workspace.root), *words], **options)
        assert done.exit_code == code, done.output + done.stderr
        return done.output + done.stderr

    return call


def queued(store, count=5):
    return [store.runs.enqueue(build({"seed": seed, "data": {"dataset": "micro"}})).id for seed in range(count)]


def order(store):
    return [row.id for row in store.queue.waiting()]


# Order


def test_runs_start_in_the_order_they_were_queued_whatever_the_clock_says(workspace):
    clock = iter(range(10_000, 0, -1))  # set back again and again
    with Store.open(workspace, clock_ms=lambda: next(clock)) as store:
        ids = queued(store)
        assert order(store) == ids
        assert [Ledger(store).claim(f"cuda:{i}", str(i), ["auto"]).id for i in range(5)] == ids


def test_a_resumed_run_waits_behind_the_others_whatever_the_clock_says(workspace):
    clock = iter(range(1_000_000, 0, -1_000))  # set back again and again
    with Store.open(workspace, clock_ms=lambda: next(clock)) as store:
        early, *others = queued(store, 3)
        Ledger(store).claim("cpu", "n")
        Ledger(store).finish(early, RunStatus.STOPPED, "Stopped.", nonce="n")
        store.runs.resume(early, "Resumed.")
        late = store.runs.enqueue(RunConfig()).id
        assert order(store) == [*others, early, late]


def test_a_run_moves_to_any_place_and_claims_follow(store):
    a, b, c, d, e = queued(store)
    assert store.queue.move(d, 1) == 1 and order(store) == [d, a, b, c, e]
    assert store.queue.move(a, 4) == 4 and order(store) == [d, b, c, a, e]
    assert store.queue.move(b, 99) == 5 and order(store) == [d, c, a, e, b]
    assert store.queue.move_by(e, -1) == 3 and order(store) == [d, c, e, a, b]
    assert store.queue.move_by(d, 1) == 2 and order(store) == [c, d, e, a, b]
    assert store.queue.move_by(c, -1) == 1 and order(store) == [c, d, e, a, b]
    late = store.runs.enqueue(RunConfig()).id
    assert order(store)[-1] == late and store.queue.count() == 6
    assert [row.id for row in store.queue.waiting(2)] == [c, d]
    assert Ledger(store).claim("cpu", "n").id == c
    assert [event.message for event in store.runs.events(d) if event.kind == "moved"][
        -1
    ] == "Moved to place 2 in the queue."


def test_runs_that_share_a_place_as_of_old_are_drawn_apart(store):
    ids = queued(store, 4)
    store.connection.db.execute("UPDATE runs SET queue_position = 7")
    assert store.queue.move(ids[3], 2) == 2 and order(store) == [ids[0], ids[3], ids[1], ids[2]]
    assert store.queue.move_by(ids[0], 1) == 2 and order(store) == [ids[3], ids[0], ids[1], ids[2]]


def test_only_what_waits_can_be_moved(store):
    first, second = queued(store, 2)
    Ledger(store).claim("cpu", "n")
    with pytest.raises(UserError, match=f"Run {first} is starting: only queued runs"):
        store.queue.move(first, 2)
    with pytest.raises(UnknownNameError):
        store.queue.move("nobody", 1)
    assert order(store) == [second]


def test_a_database_from_before_the_queue_keeps_its_order(workspace):
    before = migrations.Migrations("sousa_engine")
    for migration in migrations.history.pending(migrations.Database(memory=True))[:3]:
        before(name=migration.name)(migration.fn)
    workspace.runs.mkdir(parents=True)
    old = migrations.Database(workspace.db)
    migrations.migrate(old, workspace, before, latest=3)
    for number, position in enumerate((30, 10, 10, 20)):
        old.execute(
            "INSERT INTO runs (id, name, status, wanted_device, queue_position, created_by, created_at_ms, config_json)"
            " VALUES (?, '', 'queued', 'auto', ?, 'cli', ?, ?)",
            [f"run-{number}", position, number, RunConfig().model_dump_json()],
        )
    old.conn.commit()
    old.close()
    with Store.open(workspace) as store:
        assert order(store) == ["run-1", "run-2", "run-3", "run-0"]
        assert (store.queue.settings().is_paused, store.queue.settings().cpu_slots) == (False, 1)
        assert store.queue.move("run-2", 1) == 1 and order(store) == ["run-2", "run-1", "run-3", "run-0"]


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


def wait_for(condition, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s")


def supervisor_left(workspace):
    lock = locks.take(workspace.supervisor_lock)
    if lock is not None:
        os.close(lock)
    return lock is not None


# Who watches


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


# Clones


def test_a_clone_has_the_settings_of_its_run_but_what_was_changed(workspace, store, ensured):
    words = ["data=micro", "seed=3", "lora.targets=[q_proj]", "training.max_epochs=4", "name=mine"]
    first = orders.start(workspace, prepare.prepare(grammar.parse(words)).config, created_by="cli")
    (same,) = orders.clone(workspace, [first], created_by="cli")
    assert same.id != first.id and same.config == first.config and len(ensured) == 2
    (other,) = orders.clone(workspace, [first], ["seed=9", "lora.targets=attention"], created_by="cli")
    changed = config.differences([first.config, other.config])
    assert set(changed) == {"seed", "lora.targets", "lora.target_set"} and other.config.lora.target_set == "attention"
    (moved,) = orders.clone(workspace, [first], ["model=beats-mini"], created_by="cli")
    assert moved.config.model.variant == "beats-mini" and moved.config.lora.targets


def test_of_several_clones_all_are_queued_or_none(workspace, store, ensured):
    config = prepare.prepare({"data": {"dataset": "micro"}}).config
    good = store.runs.enqueue(config)
    bad = store.runs.enqueue(config.model_copy(update={"device": "cuda:77"}))
    with pytest.raises(PreflightError, match=rf"{bad.id} \(.*cuda:77 is not available on this machine"):
        orders.clone(workspace, [good, bad], created_by="cli")
    with pytest.raises(ConfigError, match=r"training\.lr"):
        orders.clone(workspace, [good], ["training.lr=-1"], created_by="cli")
    assert len(store.runs.all()) == 2 and not ensured


# The command line


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
        assert order(store)[0] == run_id
    assert "matches several runs:" in sousa("queue", "move", first[:6], "--to", "1", code=2)
    assert "No run named 'nobody'" in sousa("queue", "move", "nobody", "--to", "1", code=2)
    assert sousa("stop", second[-4:]) == f"run {second}: stopped\n" and second not in order(store)


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
        before = order(store)
        said = sousa("clone", "--failed").splitlines()
        return [run_id for run_id in order(store) if run_id not in before], said

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


def test_a_stop_of_an_earlier_launch_is_no_stop_of_the_next(store):
    (run_id,) = queued(store, 1)
    Ledger(store).claim("cpu", "n1")
    store.runs.request_stop(run_id, at_once=True)
    store.connection.db.execute("UPDATE runs SET status = 'queued', slot = NULL")  # taken up again
    run = Ledger(store).claim("cpu", "n2")
    assert (run.stop_requested_at_ms, run.kill_requested_at_ms) == (None, None)
    assert json.dumps(run.facts) == "{}"
