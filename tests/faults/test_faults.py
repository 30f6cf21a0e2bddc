"""A short cut of `make faults`: some rounds of most kinds, with a seed of the day's choosing, printed on a failure."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import subprocess
import sys

import pytest

from sousa_engine.core.records import Event
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import PROJECT_ROOT
from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint
from tests.faults.__main__ import RESULTS, table
from tests.faults.double import loss
from tests.faults.ground import TRAINER, Ground
from tests.faults.kinds import KINDS, NoDisk, play

pytestmark = pytest.mark.process
SEED = os.environ.get("FAULTS_SEED") or str(secrets.randbelow(10**6))


@pytest.fixture(scope="module")
def pace(tmp_path_factory):
    """Measured once: on a run to which nothing is done, so it must finish and all its rows must be counted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "ledgers").mkdir()
    (folder / "here").mkdir()
    with Ground(folder / "here", folder / "ledgers", "seed") as found:
        found.measure()
        return found.pace


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.short])
def test_no_fault_loses_doubles_or_leaves_anything(kind, pace):
    rounds = KINDS[kind].short
    try:
        tally = play(kind, rounds, SEED, beside=2, pace=pace)
    except NoDisk as why:
        pytest.skip(str(why))
    assert tally.rounds == rounds and (tally.acknowledged or not KINDS[kind].rows)
    assert not any(tally.faults.values()), f"FAULTS_SEED={SEED}: {tally.faults}\n" + "\n".join(tally.notes)


def test_results_page_shows_what_was_counted():
    kinds = json.loads(RESULTS.read_text())["kinds"]
    assert list(kinds) == [kind.title for kind in KINDS.values()] and all(k["rounds"] >= 20 for k in kinds.values())
    assert table(kinds) in (PROJECT_ROOT / "benchmarks" / "RESULTS.md").read_text()


# The counters themselves: each must be able to be something else than 0


@pytest.fixture
def ground(tmp_path):
    (tmp_path / "ledgers").mkdir()
    (tmp_path / "here").mkdir()
    with Ground(tmp_path / "here", tmp_path / "ledgers", "seed") as found:
        yield found


def take(ground, run_id, start, end):
    """A batch of one row, acknowledged, and one event."""
    (ground.ledgers / run_id).write_bytes(b"\0\1")
    point = SpoolPoint("train/loss", 1, loss(1), 1, None, 0)
    event = Event(at_ms=0, kind="double", message="Step 1, process 7.")
    assert Ledger(ground.store).ingest(run_id, SpoolBatch(start=start, end=end, points=[point], events=[event]))


def lose_a_row(ground, run_id):
    (ground.ledgers / run_id).write_bytes(b"\0\1\1")


def change_a_row(ground, run_id):
    alter(ground, "UPDATE metric_points SET value = 0.5")


def make_up_rows(ground, run_id):
    of_run = "SELECT run_number, metric_number, {}, value, not_finite, epoch, clip_count, at_ms FROM metric_points"
    alter(ground, *(f"INSERT INTO metric_points {of_run.format(step)} WHERE step = 1" for step in (2, 3, 4)))


def count_a_row_twice(ground, run_id):
    alter(ground, "UPDATE metric_levels SET point_count = 2")


def take_a_batch_twice(ground, run_id):
    take(ground, run_id, 10, 20)


def leave_a_trainer(ground, run_id):
    """One that ends by itself, before anybody would call it an orphan."""
    words = ["-c", "import time; time.sleep(2)", "-m", TRAINER, str(ground.workspace.run_dir(run_id))]
    subprocess.Popen([sys.executable, *words], start_new_session=True)
    ground.wait(lambda: ground.processes(TRAINER, run_id), "process", supervised=False)


def half_a_checkpoint(ground, run_id):
    (ground.workspace.run_dir(run_id) / "checkpoints" / "step-00000008").mkdir(parents=True)


def alter(ground, *statements):
    with contextlib.closing(sqlite3.connect(ground.workspace.db)) as plain, plain:
        for statement in statements:
            plain.execute(statement)


@pytest.mark.parametrize(
    ("harm", "counter"),
    [
        (None, None),
        (lose_a_row, "lost"),
        (change_a_row, "lost"),
        (make_up_rows, "doubled"),
        (count_a_row_twice, "doubled"),
        (take_a_batch_twice, "doubled"),
        (leave_a_trainer, "orphans"),
        (half_a_checkpoint, "unreadable"),
    ],
)
def test_what_is_wrong_is_counted(ground, harm, counter):
    run_id = ground.queue()
    ground.store.runs.request_stop(run_id)
    take(ground, run_id, 0, 10)
    if harm:
        harm(ground, run_id)
    ground.count(ground.run(run_id), lambda run: True)
    assert {name for name, count in ground.tally.faults.items() if count} == ({counter} if counter else set())


def test_what_a_deletion_left_is_found(ground):
    run_id = ground.queue()
    (row,) = ground.left_of([run_id])
    assert row[0] == run_id
    alter(ground, "DELETE FROM runs")
    assert ground.left_of([run_id]), "its events"
    alter(ground, "DELETE FROM events", "DELETE FROM listed_runs")
    assert ground.left_of([run_id]) == []
    (ground.workspace.trash / run_id).mkdir(parents=True)
    ground.expect("lost", not ground.left_of([run_id]), "a folder")
    assert ground.tally.lost == 1


def test_an_end_that_is_none_or_not_true_is_counted(ground):
    run_id = ground.queue()
    ground.count(ground.run(run_id), lambda run: True)
    ground.store.runs.request_stop(run_id)
    ground.count(ground.run(run_id), lambda run: False)
    assert (ground.tally.endless, ground.tally.untrue) == (1, 1)
