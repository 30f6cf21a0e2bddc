"""The file runs.db: made at first use by any number at once, migrated behind a copy, refused where it is not ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from seeding import begin_at_once, old_database

from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import WorkspaceError
from sousa_engine.store import Store, migrations
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import PROJECT_ROOT, Workspace, file_systems
from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint

LATEST = migrations.LATEST
_OPEN_AT_ONCE = """
import sys, threading
from pathlib import Path
from sousa_engine.core.config import RunConfig
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace
barrier = threading.Barrier(4)
errors = []
def go():
    barrier.wait()
    try:
        with Store.open(Workspace(root=Path(sys.argv[1]))) as store:
            store.runs.enqueue(RunConfig())
    except Exception as error:
        errors.append(repr(error))
threads = [threading.Thread(target=go) for _ in range(4)]
print("ready", flush=True)
sys.stdin.readline()
[t.start() for t in threads]; [t.join() for t in threads]
sys.exit("; ".join(errors) or 0)
"""


def test_first_use_from_many_threads_and_processes_at_once_makes_one_database(workspace):
    begin_at_once(_OPEN_AT_ONCE, workspace, timeout_s=60)
    with Store.open(workspace) as store:
        assert len(store.runs.all()) == 8
        assert store.connection.db.journal_mode == "wal"
    assert not list(workspace.root.glob("runs.schema-*"))


def test_a_database_of_a_newer_program_is_refused_and_left_alone(workspace):
    Store.open(workspace).close()
    with sqlite3.connect(workspace.db) as plain:
        plain.execute("PRAGMA user_version = 99")
    plain.close()
    for readonly in (False, True):
        with pytest.raises(
            WorkspaceError, match=rf"schema version 99; this program supports versions up to {LATEST}\. Update"
        ):
            Store.open(workspace, readonly=readonly)


def history_and(change):
    """Today's history, none of it applied again, and one more change."""
    newer = migrations.Migrations("sousa_engine")
    for migration in migrations.history.pending(migrations.Database(memory=True)):
        newer(name=migration.name)(lambda db: pytest.fail("applied twice"))
    newer(name="9999_remark")(change)
    return newer


def test_an_older_database_is_copied_before_it_is_migrated(workspace):
    with Store.open(workspace) as store:
        run = store.runs.enqueue(RunConfig())
        newer = history_and(lambda db: db.execute("ALTER TABLE runs ADD COLUMN remark TEXT"))
        migrations.migrate(store.connection.db, workspace, newer, latest=LATEST + 1)
    (copy,) = workspace.root.glob(f"runs.schema-{LATEST}.*.db")
    for path, columns, version in ((copy, 0, LATEST), (workspace.db, 1, LATEST + 1)):
        plain = sqlite3.connect(path)
        assert plain.execute("SELECT count(*) FROM pragma_table_info('runs') WHERE name = 'remark'").fetchone() == (
            columns,
        )
        assert plain.execute("SELECT id FROM runs").fetchone() == (run.id,)
        assert plain.execute("PRAGMA user_version").fetchone() == (version,)
        plain.close()


def test_many_processes_at_once_migrate_an_older_database_once(workspace):
    old_database(workspace, 1).close()
    begin_at_once(_OPEN_AT_ONCE, workspace, timeout_s=60)
    with Store.open(workspace) as store:
        assert len(store.runs.all()) == 8
    assert len(list(workspace.root.glob("runs.schema-1.*.db"))) == 1


_KILLED = """
import os, signal, sys
from pathlib import Path
from sousa_engine.store import migrations
from sousa_engine.workspace import Workspace
workspace = Workspace(root=Path(sys.argv[1]))
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
newer = migrations.Migrations("sousa_engine")
for migration in migrations.history.pending(migrations.Database(memory=True)):
    newer(name=migration.name)(migration.fn)
def change(db):
    db.execute("ALTER TABLE runs ADD COLUMN remark TEXT")
    die()
newer(name="9999_remark")(change)
db = migrations.open_database(workspace)
if sys.argv[2] == "copying":
    sys.addaudithook(lambda event, arguments: die() if event == "os.link" else None)
migrations.migrate(db, workspace, newer, latest=migrations.LATEST + 1)
"""


@pytest.mark.parametrize("at", ["copying", "changing"])
def test_killed_in_the_middle_of_a_migration_the_database_is_as_it_was(workspace, at):
    with Store.open(workspace) as store:
        run = store.runs.enqueue(RunConfig())
    command = [sys.executable, "-c", _KILLED, str(workspace.root), at]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(workspace.root.glob("runs.schema-*.db"))) == (at == "changing")
    with Store.open(workspace) as store:
        assert store.runs.get(run.id) == run
        assert "remark" not in store.connection.db.table("runs").columns_dict
        newer = history_and(lambda db: db.execute("ALTER TABLE runs ADD COLUMN remark TEXT"))
        migrations.migrate(store.connection.db, workspace, newer, latest=LATEST + 1)
        assert "remark" in store.connection.db.table("runs").columns_dict
    assert not list(workspace.root.glob(".runs.schema-*"))  # the torn copy is gone too


def test_the_last_three_copies_are_kept(workspace, monkeypatch):
    monkeypatch.setattr(migrations, "LATEST", LATEST + 9)  # later programs know later schemas
    with contextlib.closing(old_database(workspace, LATEST)) as db:
        for version in range(LATEST + 1, LATEST + 6):
            newer = history_and(lambda db: None)
            for more in range(LATEST + 2, version + 1):
                newer(name=f"9999_more_{more}")(lambda db: None)
            migrations.migrate(db, workspace, newer, latest=version)
    kept = sorted(int(copy.name.split(".")[1].removeprefix("schema-")) for copy in workspace.root.glob("runs.schema-*"))
    assert kept == [LATEST + 2, LATEST + 3, LATEST + 4]


def test_a_disk_without_room_for_the_copy_refuses_the_migration_and_changes_nothing(small_disk):
    workspace = Workspace(root=small_disk)
    with Store.open(workspace) as store:
        run = store.runs.enqueue(RunConfig())
        store.connection.db.execute("CREATE TABLE filling (bytes BLOB)")
        for _ in range(3):
            store.connection.db.execute("INSERT INTO filling VALUES (randomblob(700000))")
            Ledger(store).checkpoint_wal()
        with pytest.raises(WorkspaceError, match=r"too full for a copy of runs\.db: free some space"):
            migrations.migrate(
                store.connection.db, workspace, history_and(lambda db: pytest.fail("applied")), latest=LATEST + 1
            )
        assert store.runs.get(run.id) == run
    assert [path.name for path in workspace.root.glob("*runs.schema-*")] == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_database_from_before_sweeps_keeps_its_runs(workspace):
    old = old_database(workspace, 1)
    values = ["260131-142305-k7mq", RunConfig().model_dump_json()]
    old.execute(
        "INSERT INTO runs (id, name, status, wanted_device, queue_position, created_by, created_at_ms, config_json)"
        " VALUES (?, 'an old one', 'queued', 'auto', 1, 'cli', 1, ?)",
        values,
    )
    old.conn.commit()
    old.close()
    with Store.open(workspace) as store:
        (run,) = store.runs.all()
        assert (run.title, run.sweep_id, run.setting, run.is_pruned) == ("an old one", None, {}, False)
        assert store.sweeps.all() == ()
    assert list(workspace.root.glob("runs.schema-1.*.db"))


def test_a_database_from_before_tags_lists_its_runs(workspace):
    old = old_database(workspace, 2)
    config = RunConfig.model_validate({"seed": 7, "data": {"dataset": "/clips/own set/"}})
    old.execute(
        "INSERT INTO runs (id, name, status, wanted_device, queue_position, created_by, created_at_ms, ended_at_ms,"
        " config_json, facts_json) VALUES ('260131-142305-k7mq', '', 'stopped', 'cpu', 1, 'cli', 5, 9, ?, ?)",
        [config.model_dump_json(), '{"parameters": {"trainable": 12}}'],
    )
    old.conn.commit()
    old.close()
    with Store.open(workspace) as store:
        (row,) = store.runs.listing().rows
        (run,) = store.runs.all()
        assert (run.tags, run.note, run.archived_at_ms) == ((), "", None)
        assert (row.id, row.title, row.dataset, row.trainable) == (run.id, run.title, "own set", 12)
        store.marks.add_tags([row.id], ["old"])
        assert store.runs.listing().rows[0].tags == ("old",)
    assert list(workspace.root.glob("runs.schema-2.*.db"))


def test_a_database_from_before_contents_takes_of_equal_accuracies_the_epoch_with_the_lowest_loss(workspace):
    old = old_database(workspace, 5)
    ids = {1: "260131-142305-k7mq", 2: "260131-142306-k7mq"}  # of the second, no loss was measured
    for number, run_id in ids.items():
        old.execute(
            "INSERT INTO runs (run_number, id, name, status, wanted_device, queue_position, created_by, created_at_ms,"
            " ended_at_ms, config_json) VALUES (?, ?, '', 'stopped', 'cpu', ?, 'cli', 5, 9, ?)",
            [number, run_id, number, RunConfig().model_dump_json()],
        )
    old.execute("INSERT INTO metric_names VALUES (1, 'valid/accuracy', 'higher'), (2, 'valid/loss', 'lower')")
    for run, metric, values in ((1, 1, (0.5, 0.8, 0.8)), (1, 2, (0.1, 0.7, 0.6)), (2, 1, (0.5, 0.8, 0.8))):
        for epoch, value in enumerate(values, start=1):
            point = [run, metric, 10 * epoch, value, epoch]
            old.execute("INSERT INTO metric_points VALUES (?, ?, ?, ?, NULL, ?, NULL, 5)", point)
        best = [run, metric, max(values) if metric == 1 else min(values), 20 if metric == 1 else 10]
        old.execute("INSERT INTO metric_summaries VALUES (?, ?, 0.8, 30, 3, NULL, ?, ?, NULL)", best)
    old.execute("INSERT INTO predictions VALUES (1, 'test', 'a', 'flam', 'drag', 0.6, 0.4)")
    old.conn.commit()
    old.close()
    with Store.open(workspace) as store:
        best = store.metrics.summaries(ids.values())
        assert [best[run_id]["valid/accuracy"].best_step for run_id in ids.values()] == [30, 20]
        assert best[ids[1]]["valid/loss"].best_step == 10
        (prediction,) = store.runs.predictions(ids[1], "test")
        assert (prediction.predicted, prediction.content) == ("drag", "")


def test_a_migration_that_fails_changes_nothing(workspace):
    def fails(db):
        db.execute("ALTER TABLE runs ADD COLUMN remark TEXT")
        raise RuntimeError("half-way")

    with Store.open(workspace) as store, pytest.raises(RuntimeError, match="half-way"):
        migrations.migrate(store.connection.db, workspace, history_and(fails), latest=LATEST + 1)
    with Store.open(workspace) as store:
        assert "remark" not in store.connection.db.table("runs").columns_dict
    assert not list(workspace.root.glob("*runs.schema-*"))  # tried at every opening, copies would fill the disk


@pytest.mark.parametrize("readonly", [False, True])
def test_garbage_and_other_programs_databases_are_refused_in_a_sentence(workspace, readonly):
    workspace.db.write_bytes(b"this is no database " * 400)
    with pytest.raises(WorkspaceError, match=r"not a readable SQLite database\. Close the studio.*db rebuild"):
        Store.open(workspace, readonly=readonly)
    workspace.db.unlink()
    with sqlite3.connect(workspace.db) as plain:
        plain.execute("CREATE TABLE recipes (id INTEGER)")
    plain.close()
    with pytest.raises(WorkspaceError, match="another program's"):
        Store.open(workspace, readonly=readonly)


def test_an_empty_file_is_as_good_as_none(workspace):
    workspace.db.touch()
    with Store.open(workspace) as store:
        assert store.runs.all() == ()


def as_another_user(work):
    """Run `work()` in a fork that may not write where root may; returns (start, answer). It waits for `start()`."""
    (wait, go), (answer, say) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go)  # so that a parent that never says go ends the wait all the same
            if not os.read(wait, 1):
                os._exit(1)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            text = work()
        except BaseException as error:
            text = f"{error!r}"
        os.write(say, text.encode())
        os._exit(0)
    os.close(say)

    def start() -> str:
        os.write(go, b"x")
        with os.fdopen(answer) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        os.close(wait)
        os.close(go)
        return text

    return start


@pytest.mark.parametrize("while_open", [False, True])
def test_a_read_only_workspace_is_said_to_be_so_and_can_still_be_read(while_open):
    root = Path(tempfile.mkdtemp(prefix="sousa-"))  # not tmp_path: another user must be able to come in
    workspace = Workspace(root=root)

    def read() -> str:
        with pytest.raises(WorkspaceError) as refused:
            Store.open(workspace)
        with Store.open(workspace, readonly=True) as store:
            run = store.runs.find("last")
            with pytest.raises(WorkspaceError) as unwritten:
                store.runs.enqueue(RunConfig())
            return f"{refused.value}\n{run.id} {store.metrics.curve(run.id, 'x').mean}\n{unwritten.value}"

    start = as_another_user(read)
    try:
        store = Store.open(workspace)
        run = store.runs.enqueue(RunConfig())
        Ledger(store).ingest(
            run.id, SpoolBatch(start=0, end=100, points=[SpoolPoint("x", s, float(s), None, None, s) for s in (1, 2)])
        )
        if not while_open:
            store.close()
        for path in (root, root / "runs"):
            path.chmod(0o555)
        lines = start().splitlines()
        store.close()
    finally:
        for path in (root, root / "runs"):
            path.chmod(0o755)
        shutil.rmtree(root)
    assert len(lines) == 3, lines
    assert "is read-only, so no run can be stored" in lines[0] and "SOUSA_WORKSPACE" in lines[0]
    assert lines[1] == f"{run.id} (1.0, 2.0)"
    assert "is read-only" in lines[2]


def test_a_workspace_that_may_not_be_looked_into_is_refused_in_a_sentence():
    root = Path(tempfile.mkdtemp(prefix="sousa-"))
    workspace = Workspace(root=root)

    def look() -> str:
        with pytest.raises(WorkspaceError) as read:
            Store.open(workspace, readonly=True)
        with pytest.raises(WorkspaceError) as written:
            Store.open(workspace)
        return f"{read.value}\n{written.value}\n{file_systems.kind_of(workspace.db)}"

    start = as_another_user(look)
    try:
        Store.open(workspace).close()
        kind = file_systems.kind_of(workspace.db)
        root.chmod(0o000)
        lines = start().splitlines()
    finally:
        root.chmod(0o755)
        shutil.rmtree(root)
    assert len(lines) == 3, lines
    assert lines[2] == kind
    for line in lines[:2]:
        assert line.startswith(f"{root} cannot be read: Permission denied.") and "SOUSA_WORKSPACE" in line


def test_reading_where_nothing_was_ever_stored_is_an_error_with_a_sentence(workspace):
    with pytest.raises(WorkspaceError, match=r"no runs\.db in"):
        Store.open(workspace, readonly=True)
    assert not workspace.db.exists()
