"""`db check` and `db backup`: what is wrong is found and named with its fix; a copy is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3

import pytest
from click.testing import CliRunner
from seeding import Training, config, seed
from streamlit.testing.v1 import AppTest
from visiting import components

from sousa_engine.cli import main
from sousa_engine.core.errors import WorkspaceError
from sousa_engine.core.records import RunStatus
from sousa_engine.maintenance import check
from sousa_engine.store import Store, migrations
from sousa_engine.web.parts import plain
from sousa_engine.workspace import PROJECT_ROOT, Workspace, run_files
from sousa_engine.workspace.spool import SpoolWriter


def db(workspace, *words):
    return CliRunner().invoke(main.main, ["--workspace", str(workspace.root), "db", *map(str, words)])


def test_a_sound_workspace_passes(workspace):
    seed(workspace)
    found = db(workspace, "check")
    assert found.exit_code == 0, found.output
    assert f"schema {migrations.LATEST}" in found.output and "integrity check: ok" in found.output
    assert "11 runs, 10 run folders" in found.output
    assert "PROBLEM" not in found.output


def test_an_empty_workspace_passes_and_nothing_is_made(workspace):
    found = db(workspace, "check")
    assert found.exit_code == 0 and "no run was ever queued here" in found.output
    assert list(workspace.root.iterdir()) == []


def test_a_folder_that_is_no_workspace_is_a_mistake(tmp_path):
    found = db(Workspace(root=tmp_path / "nowhere"), "check")
    assert found.exit_code == 2 and "does not exist" in found.stderr


def problems(workspace):
    found = db(workspace, "check")
    assert found.exit_code == 1, found.output
    return [line.removeprefix("PROBLEM  ") for line in found.output.splitlines() if line.startswith("PROBLEM")]


def test_a_missing_database_beside_folders_is_found(workspace):
    run = Training.begin(workspace).finish()
    workspace.db.unlink()
    (line,) = problems(workspace)
    assert "runs.db is missing, but there is 1 run folder" in line and run.id in line and "db rebuild" in line


def test_an_empty_database_beside_folders_is_found(workspace):
    Training.begin(workspace).finish()
    for path in workspace.root.glob("runs.db*"):
        path.unlink()
    workspace.db.touch()
    (line,) = problems(workspace)
    assert "empty, but there is 1 run folder" in line


def test_garbage_and_newer_files_are_told_in_a_sentence(workspace):
    workspace.db.write_bytes(b"no database" * 1000)
    found = db(workspace, "check")
    assert found.exit_code == 1 and "not a readable SQLite database" in found.stderr and "db rebuild" in found.stderr
    workspace.db.unlink()
    Store.open(workspace).close()
    with sqlite3.connect(workspace.db) as plain:
        plain.execute("PRAGMA user_version = 99")
    plain.close()
    found = db(workspace, "check")
    assert found.exit_code == 1 and "schema version 99" in found.stderr


def test_an_older_schema_is_a_fact_and_is_not_migrated(workspace):
    before = migrations.Migrations("sousa_engine")
    for migration in migrations.history.pending(migrations.Database(memory=True))[:2]:
        before(name=migration.name)(migration.fn)
    workspace.runs.mkdir()
    old = migrations.Database(workspace.db)
    migrations.migrate(old, workspace, before, latest=2)
    old.close()
    found = db(workspace, "check")
    assert found.exit_code == 0 and "schema 2 (upgraded to" in found.output
    assert db(workspace, "backup").exit_code == 0
    with sqlite3.connect(workspace.db) as plain:
        assert plain.execute("PRAGMA user_version").fetchone() == (2,)
    plain.close()


def test_a_damaged_page_is_found(workspace, week_of_work):
    with workspace.db.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for at in range(size // 2 // 4096 * 4096, size, 8 * 4096):
            file.seek(at)
            file.write(b"\xff" * 4096)
    (line,) = problems(workspace)
    assert line.startswith("runs.db is damaged: ") and "db rebuild" in line


def test_lines_of_no_run_are_found(workspace):
    Training.begin(workspace).finish()
    with sqlite3.connect(workspace.db) as plain:
        plain.execute("PRAGMA foreign_keys = OFF")
        plain.execute("INSERT INTO events (run_number, at_ms, kind, message) VALUES (77, 1, 'x', 'y')")
    plain.close()
    (line,) = problems(workspace)
    assert "Run or sweep missing for 1 row of events" in line


def test_a_list_that_differs_from_the_runs_is_found(workspace):
    Training.begin(workspace).finish()
    with sqlite3.connect(workspace.db) as plain:
        plain.execute("UPDATE listed_runs SET title = 'another'")
    plain.close()
    (line,) = problems(workspace)
    assert "list of runs differs" in line


def test_a_run_without_its_folder_and_a_folder_without_its_run_are_found(workspace):
    gone, unknown = (Training.begin(workspace, config(seed=n)).finish() for n in (1, 2))
    shutil.rmtree(workspace.run_dir(gone.id))
    with Store.open(workspace) as store, store.connection.writing() as plain:
        for table in ("events", "predictions"):
            plain.execute(f"DELETE FROM {table}")
        plain.execute("DELETE FROM runs WHERE id = ?", [unknown.id])
    without, strange = problems(workspace)
    assert gone.id in without and "without a folder" in without
    assert unknown.id in strange and "not in runs.db" in strange


def test_spools_ahead_of_and_behind_the_database_are_found(workspace):
    over = Training.begin(workspace, config(seed=1))
    over.steps(5)
    over.end(RunStatus.STOPPED, "Stopped.")
    cut = Training.begin(workspace, config(seed=2))
    cut.steps(5)
    cut.end(RunStatus.STOPPED, "Stopped.")
    live = Training.begin(workspace, config(seed=3))
    for training in (over, live):
        with SpoolWriter(training.folder / run_files.SPOOL) as writer:
            writer.metrics(6, {"train/loss": 1.0})
    os.truncate(cut.folder / run_files.SPOOL, 100)
    running, ahead, behind = problems(workspace)
    assert live.run.id in running and "Open the studio" in running
    assert over.run.id in ahead and "db rebuild" in ahead
    assert cut.run.id in behind and "is lost" in behind


def test_a_line_torn_at_a_spools_end_is_no_finding(workspace):
    training = Training.begin(workspace)
    training.steps(5)
    training.end(RunStatus.STOPPED, "Stopped.")
    with (training.folder / run_files.SPOOL).open("ab") as file:
        file.write(b'{"k":"metr')
    assert db(workspace, "check").exit_code == 0


def test_a_backup_is_dated_whole_and_never_replaces_a_file(workspace, tmp_path):
    run = Training.begin(workspace).finish()
    made = db(workspace, "backup")
    assert made.exit_code == 0, made.output
    (copy,) = workspace.root.glob("runs.backup.*.db")
    assert str(copy) in made.output
    other = tmp_path / "elsewhere"
    other.mkdir()
    named = other / "runs.db"
    assert db(workspace, "backup", named).exit_code == 0
    for path in (copy, named):
        plain = sqlite3.connect(path)
        assert plain.execute("SELECT id FROM runs").fetchall() == [(run.id,)]
        plain.close()
    with Store.open(Workspace(root=other)) as store:  # it is a runs.db like any other
        assert store.runs.get(run.id) == run
    before = named.read_bytes()
    again = db(workspace, "backup", named)
    assert again.exit_code == 2 and "never replaces a file" in again.stderr
    assert named.read_bytes() == before
    assert [path.name for path in other.iterdir() if "part" in path.name] == []


def test_a_backup_while_a_run_writes_has_all_that_was_committed(workspace):
    training = Training.begin(workspace)
    with Store.open(workspace) as store:  # holds the log open, as a supervisor does
        training.steps(30)
        copy = check.backup(workspace)
        assert store.metrics.curve(training.run.id, "train/loss").steps[-1] == 30
    plain = sqlite3.connect(copy)
    assert plain.execute("SELECT max(step) FROM metric_points").fetchone() == (30,)
    plain.close()


@pytest.mark.parametrize("place", ["no/such/folder/copy.db", "runs/copy.db/copy.db"])
def test_a_backup_that_cannot_be_written_says_so(workspace, place):
    Training.begin(workspace).finish()
    (workspace.runs / "copy.db").touch()
    made = db(workspace, "backup", workspace.root / place)
    assert made.exit_code == 2 and "There is no folder" in made.stderr


def test_nothing_and_damage_cannot_be_backed_up(workspace, tmp_path_factory, week_of_work):
    with pytest.raises(WorkspaceError, match=r"no runs\.db in .*: nothing to copy"):
        check.backup(Workspace(root=tmp_path_factory.mktemp("empty")))
    os.truncate(workspace.db, workspace.db.stat().st_size // 2 // 4096 * 4096)
    with pytest.raises(WorkspaceError, match="db rebuild"):
        check.backup(workspace)
    assert not list(workspace.root.glob("*runs.backup*"))


def test_rebuild_says_what_came_of_it(workspace):
    run = Training.begin(workspace).finish()
    workspace.db.write_bytes(b"garbage" * 1000)
    made = db(workspace, "rebuild")
    assert made.exit_code == 0, made.output
    assert "1 run in the new runs.db" in made.output and "lost: The old runs.db could not be read" in made.output
    assert "runs.before-rebuild." in made.output
    with Store.open(workspace) as store:
        assert store.runs.get(run.id).status is RunStatus.FINISHED


def test_a_read_only_workspace_is_shown_with_a_banner_that_says_so(workspace, monkeypatch):
    run = Training.begin(workspace).finish()
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))  # root may all else
    app = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=60).run()
    app.switch_page(str(PROJECT_ROOT / "pages" / "runs.py")).run()
    assert not app.exception
    (banner,) = [warning.value for warning in app.warning if "read-only" in warning.value]
    assert "not change anything" in banner and plain(str(workspace.root)) in banner
    (table,) = components(app)
    assert run.id in json.dumps(table)
