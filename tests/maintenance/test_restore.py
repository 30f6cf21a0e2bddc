"""`db restore`: a copy takes the place of runs.db whole, or nothing is changed and a sentence says why."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sqlite3

import pytest
from click.testing import CliRunner
from seeding import Training, config, killed_before_change, old_database

from sousa_engine.cli import main
from sousa_engine.core.records import RunStatus
from sousa_engine.maintenance import check, restore
from sousa_engine.store import Store, migrations
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import Workspace, run_files


def db(workspace, *words, code=0):
    done = CliRunner().invoke(main.main, ["--workspace", str(workspace.root), "db", *map(str, words)])
    assert done.exit_code == code, done.output + done.stderr
    return done.output


@pytest.fixture
def copy(workspace, week_of_work):
    """A copy of a week's work, of which runs.db knows nothing any more but another run."""
    made = check.backup(workspace, workspace.root / "copy.db")
    shutil.rmtree(workspace.runs)
    for path in workspace.root.glob("runs.db*"):
        path.unlink()
    Training.begin(workspace, config(seed=77)).finish()
    return made


def runs(workspace):
    with Store.open(workspace) as store:
        return store.runs.all()


def ids(path):
    plain = sqlite3.connect(path)
    found = {run_id for (run_id,) in plain.execute("SELECT id FROM runs")}
    plain.close()
    return found


def names(workspace):
    return {path.name for path in workspace.root.iterdir()} - {"runs.db-wal", "runs.db-shm"}


def test_the_copy_is_runs_db_and_the_file_before_is_kept(workspace, copy):
    (run,) = runs(workspace)
    before, there = copy.read_bytes(), names(workspace)
    said = db(workspace, "restore", copy)
    assert copy.read_bytes() == before
    (kept,) = workspace.root.glob("runs.before-restore.*.db")
    assert ids(kept) == {run.id} and f"previous file: {kept}" in said
    assert {found.id for found in runs(workspace)} == ids(copy) and f"{len(ids(copy))} runs in runs.db" in said
    assert names(workspace) == there | {kept.name}
    plain = sqlite3.connect(workspace.db)
    assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    plain.close()


def test_where_runs_db_and_the_folder_of_runs_are_gone_the_copy_alone_is_enough(workspace, copy):
    shutil.rmtree(workspace.runs)
    for path in workspace.root.glob("runs.db*"):
        path.unlink()
    assert "the file before" not in db(workspace, "restore", copy)
    assert {found.id for found in runs(workspace)} == ids(copy)


def test_what_was_trained_since_the_copy_is_named_and_taken_in_by_a_rebuild(workspace):
    with Store.open(workspace) as store:
        waited = store.runs.enqueue(config(seed=1)).id
    copy = check.backup(workspace)
    Training.take(workspace, runs(workspace)[0]).finish()
    late = Training.begin(workspace, config(seed=2)).finish()
    said = db(workspace, "restore", copy)
    assert f"2 runs trained after that copy was made: {', '.join(sorted((waited, late.id)))}." in said
    assert "db rebuild" in said
    with Store.open(workspace) as store:
        assert [run.status for run in store.runs.all()] == [RunStatus.QUEUED] and Ledger(store).claim(
            "cpu", "n"
        ) is None
        assert store.queue.settings().is_paused, "else it would be trained again, over its own results"
    db(workspace, "rebuild")
    assert {run.id: run.status for run in runs(workspace)} == dict.fromkeys((waited, late.id), RunStatus.FINISHED)


def test_a_copy_of_an_older_schema_is_brought_to_todays_before_it_is_put_in_place(workspace, copy, tmp_path):
    elsewhere = Workspace(root=tmp_path / "elsewhere")
    old_database(elsewhere, 2).close()
    db(workspace, "restore", elsewhere.db)
    assert f"schema {migrations.LATEST}\n" in db(workspace, "check", code=1) and runs(workspace) == ()
    assert not list(workspace.root.glob("runs.schema-*"))


def spoil(path, sql):
    plain = sqlite3.connect(path)
    plain.execute(sql)
    plain.commit()
    plain.close()


def cut(path):
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def overwrite(path):
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for at in range(size // 2 // 4096 * 4096, size, 8 * 4096):
            file.seek(at)
            file.write(b"\xff" * 4096)


@pytest.mark.parametrize(
    ("spoiled", "told"),
    [
        (lambda path: path.unlink(), "There is no file"),
        (lambda path: path.unlink() or path.mkdir(), "There is no file"),
        (lambda path: path.write_bytes(b""), "is not a copy of a runs.db"),
        (lambda path: path.write_bytes(b"no database" * 1000), "is not a readable SQLite database"),
        (cut, "Choose another copy."),
        (overwrite, "is damaged ("),
        (lambda path: spoil(path, "PRAGMA user_version = 99"), "schema version 99"),
        (lambda path: spoil(path, "PRAGMA application_id = 7"), "is not a copy of a runs.db"),
        (lambda path: spoil(path, "ALTER TABLE runs RENAME TO walks"), "has no table of runs"),
    ],
    ids=["missing", "folder", "empty", "garbage", "cut", "damaged", "newer", "foreign", "tables"],
)
def test_what_is_no_sound_copy_is_refused_in_a_sentence_and_nothing_changes(workspace, copy, spoiled, told):
    spoiled(copy)
    before, there = workspace.db.read_bytes(), names(workspace)
    said = db(workspace, "restore", copy, code=2)
    assert told in said and len(said.splitlines()) == 1 and "Traceback" not in said
    assert workspace.db.read_bytes() == before and names(workspace) == there


def test_runs_db_is_no_copy_of_itself(workspace, copy):
    assert "is runs.db itself" in db(workspace, "restore", workspace.db, code=2)
    assert "Usage" in db(workspace, "restore", "--help") and "FILE" in db(workspace, "restore", code=2)


def test_refused_while_a_supervisor_lives_or_a_run_trains(workspace, copy):
    before = workspace.db.read_bytes()
    with workspace.supervisor_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "A supervisor is running in" in db(workspace, "restore", copy, code=1)
    (run,) = runs(workspace)
    with (workspace.run_dir(run.id) / run_files.KEEPER_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"Still training: {run.id}." in db(workspace, "restore", copy, code=1)
    assert workspace.db.read_bytes() == before and not list(workspace.root.glob("*restore*"))


def test_nobody_else_is_let_in_meanwhile(workspace, copy, monkeypatch):
    def held(path):
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    seen = []
    locks = (workspace.supervisor_lock, workspace.runs / ".migrate.lock", workspace.runs / ".trash.lock")
    put = restore.rebuild.put_in_place
    monkeypatch.setattr(restore.rebuild, "put_in_place", lambda *args: seen.extend(map(held, locks)) or put(*args))
    db(workspace, "restore", copy)
    assert seen == [True, True, True] and not any(map(held, locks))


_RESTORE = """
from pathlib import Path
from sousa_engine.maintenance import restore
from sousa_engine.workspace import Workspace
watched()
restore.restore(Workspace(root=Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.process
def test_killed_before_any_of_its_changes_there_is_the_old_database_or_the_copy(workspace, copy):
    old, new, seen = {run.id for run in runs(workspace)}, ids(copy), []
    with killed_before_change(_RESTORE, workspace.root, copy) as ended:
        for moment in range(40):
            code = ended(moment)
            found = {run.id for run in runs(workspace)}
            assert found in (old, new)
            seen.append(found == new)
            if found == new:
                break
            assert code == -signal.SIGKILL
    assert seen[-1] and len(seen) > 3, seen
    db(workspace, "restore", copy)
    assert not list(workspace.root.glob(".runs.*"))


def test_a_rebuild_names_the_copies_that_could_be_had_back_instead(workspace, copy):
    os.utime(copy, (1_700_000_000, 1_700_000_000))
    newest = check.backup(workspace)
    (workspace.root / "other.db").write_bytes(b"no database")
    spoil(workspace.root / "foreign.db", "CREATE TABLE runs (id)")
    db(workspace, "rebuild")
    lines = [line for line in db(workspace, "rebuild").splitlines() if line.startswith("alternatively")]
    assert len(lines) == 2  # neither what the first rebuild replaced nor what is no copy
    assert "1 run: " in lines[0] and lines[0].endswith(f"python -m sousa_engine db restore {newest}")
    assert "copy of 2023-11-1" in lines[1] and f"{len(ids(copy))} runs: " in lines[1] and str(copy) in lines[1]
    shutil.rmtree(workspace.runs)
    assert str(newest) in db(workspace, "rebuild", code=1)  # where it fails, all the more
