"""`db rebuild`: runs.db made again from the runs' folders shows what it showed, whatever became of the old file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from seeding import Training, config, killed_before_change, seed_sweep, train_next

from sousa_engine.analysis.export import runs_csv
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import WorkspaceError
from sousa_engine.core.records import RunFilter, RunStatus
from sousa_engine.maintenance import check
from sousa_engine.maintenance import rebuild as rebuilding
from sousa_engine.maintenance.rebuild import rebuild
from sousa_engine.maintenance.salvage import database_files
from sousa_engine.runs.supervisor import Supervisor
from sousa_engine.store import Store, migrations
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import run_files, spool


def shown(workspace) -> dict:
    """Everything that a page can ask the store for."""
    with Store.open(workspace) as store:
        runs = store.runs.all()
        return {
            "runs": runs,
            "listing": store.runs.listing(RunFilter(archived=None)),
            "csv": runs_csv(store.runs.listing(RunFilter(archived=None)).rows),
            "outlines": store.metrics.sparklines([run.id for run in runs], "valid/accuracy"),
            "summaries": store.metrics.summaries([run.id for run in runs]),
            "sweeps": store.sweeps.all(),
            "of sweeps": {sweep.id: store.sweeps.runs(sweep.id) for sweep in store.sweeps.all()},
            "target sets": store.target_sets.all(),
            "tags": store.marks.tags(),
            "queue": store.queue.settings(),
            **{
                run.id: {
                    "events": store.runs.events(run.id),
                    "predictions": {split: store.runs.predictions(run.id, split) for split in ("valid", "test")},
                    "updates": store.metrics.updates(run.id),
                    "divergence": store.metrics.first_divergence(run.id),
                    "curves": {
                        (metric, points): store.metrics.curve(run.id, metric, max_points=points)
                        for metric in store.metrics.names(run.id)
                        for points in (20, 500)
                    },
                    "moments": store.metrics.moments(run.id, "train/loss", range(1, 200)),
                    "launch": Ledger(store).attempt(run.id),
                }
                for run in runs
            },
        }


@pytest.fixture
def seeded(workspace, week_of_work):
    """A week of work, with all that people add to it."""
    runs = week_of_work
    sweep = seed_sweep(workspace, ranks=(4,), rates=(5e-4, 2e-3), seeds=(1,), pruned=1)
    with Store.open(workspace) as store:
        store.marks.add_tags([runs["finished"].id, runs["failed"].id], ["best", "ärger"])
        store.marks.set_note(runs["stopped"].id, "Look again.\nThen decide.")
        store.runs.rename(runs["lost"].id, "the power cut")
        store.marks.archive([runs["random"].id])
        store.target_sets.save("mine", "ast-mini", ["layers.0.mlp.fc1"], "train")
        store.runs.request_stop(store.runs.enqueue(config(seed=40, name="never started")).id)
        train_next_of(store)
        store.runs.enqueue(config(seed=42, name="waits"), created_by="cli")
        store.queue.set_cpu_slots(2)
        store.queue.pause()
    assert sweep
    return runs


def train_next_of(store):
    """A run whose folder is gone: the database alone knows it."""
    store.runs.enqueue(config(seed=41, name="no folder"))
    train_next(store)


def test_rebuilt_beside_a_readable_database_everything_a_page_shows_is_the_same(workspace, seeded):
    before = shown(workspace)
    made = rebuild(workspace)
    assert (made.from_files, made.lost, made.left_out) == ((), (), ())
    assert made.runs == len(before["runs"])
    assert shown(workspace) == before
    assert made.kept and made.kept.exists()
    assert rebuild(workspace).runs == made.runs  # and once more
    assert shown(workspace) == before
    assert len(list(workspace.root.glob("runs.before-rebuild.*.db"))) == 2


def spoil_with_garbage(path):
    path.write_bytes(os.urandom(40_000))


def spoil_by_truncation(path):
    with path.open("r+b") as file:
        file.truncate(2048)


def spoil_by_deletion(path):
    path.unlink()


def spoil_by_emptying(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [spoil_with_garbage, spoil_by_truncation, spoil_by_deletion, spoil_by_emptying])
def test_from_folders_alone_what_was_measured_and_how_runs_ended_comes_back(workspace, week_of_work, spoil):
    runs = week_of_work
    before = shown(workspace)
    spoil(workspace.db)
    made = rebuild(workspace)
    after = shown(workspace)
    assert set(made.from_files) == {run.id for run in runs.values()}
    assert "tags" in " ".join(made.lost) and "sweeps" in " ".join(made.lost)
    assert after["summaries"] == before["summaries"]
    assert after["outlines"] == before["outlines"]
    for run in runs.values():
        old = next(r for r in before["runs"] if r.id == run.id)
        new = next(r for r in after["runs"] if r.id == run.id)
        same = ("status", "started_at_ms", "progress", "facts", "weights_label", "device", "attempts", "title")
        assert {key: getattr(new, key) for key in same} == {key: getattr(old, key) for key in same}
        assert new.created_at_ms // 1000 == old.created_at_ms // 1000
        assert new.config == old.config
        if new.status is not RunStatus.LOST:
            assert (new.ended_at_ms, new.reason) == (old.ended_at_ms, old.reason)
        for key in ("predictions", "updates", "divergence", "curves", "moments", "launch"):
            assert after[run.id][key] == before[run.id][key], key
        told = {(event.at_ms, event.kind) for event in after[run.id]["events"]}
        assert {(e.at_ms, e.kind) for e in before[run.id]["events"] if e.kind in ("checkpoint", "started")} <= told
    assert [row.id for row in after["listing"].rows] == [row.id for row in before["listing"].rows]
    assert check.check(workspace).findings == ()
    kept = list(workspace.root.glob("runs.before-rebuild.*.db"))
    assert len(kept) == (spoil is not spoil_by_deletion)


def test_of_a_damaged_database_what_lies_around_the_damage_is_kept(workspace, seeded):
    before = {run.id: run for run in shown(workspace)["runs"]}
    with sqlite3.connect(workspace.db) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page_bytes = plain.execute("PRAGMA page_size").fetchone()[0]
        leaves = "SELECT pageno FROM dbstat WHERE name = 'runs' AND pagetype = 'leaf' ORDER BY path"
        try:
            pages = [row[0] for row in plain.execute(leaves)]
        except sqlite3.OperationalError:
            pytest.skip("this SQLite has no dbstat, which says where a table's pages lie")
    plain.close()
    assert len(pages) > 4
    with workspace.db.open("r+b") as file:
        file.seek((pages[len(pages) // 2] - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    assert "damaged" in check.check(workspace).findings[0]
    made = rebuild(workspace)
    after = {run.id: run for run in shown(workspace)["runs"]}
    assert 0 < len(made.from_files) < len(before) / 2
    for run_id, run in after.items():
        if run_id not in made.from_files:
            assert run == before[run_id]
    assert {run_id for run_id in before if run_files_exist(workspace, run_id)} <= set(after)
    assert any("could not be read" in line for line in made.lost)
    assert [finding[:22] for finding in check.check(workspace).findings] == ["1 run without a folder"]  # as before


def run_files_exist(workspace, run_id):
    return (workspace.run_dir(run_id) / run_files.CONFIG).exists()


def test_an_old_backup_put_back_does_not_undo_what_came_after_it(workspace):
    training = Training.begin(workspace)
    training.steps(40)
    training.end(RunStatus.STOPPED, "Stopped at step 40.")
    copy = check.backup(workspace)
    later = Training.begin(workspace, config(seed=2)).finish()  # a run that the backup does not know
    note = run_files.read_json(training.folder / run_files.EXIT)  # and one that was launched again
    later_ms = note["ended_ms"] + 60_000
    note |= {"nonce": "second", "exit_code": 0, "started_ms": later_ms, "ended_ms": later_ms + 5000}
    run_files.write_json(training.folder / run_files.EXIT, note)
    run_files.write_json(training.folder / run_files.RESULT, {"outcome": "finished", "reason": None})
    for path in workspace.root.glob("runs.db*"):
        path.unlink()
    shutil.copy(copy, workspace.db)
    made = rebuild(workspace)
    with Store.open(workspace) as store:
        run = store.runs.get(training.run.id)
        assert (run.status, run.reason, run.ended_at_ms) == (RunStatus.FINISHED, None, later_ms + 5000)
        assert store.runs.get(later.id).status is RunStatus.FINISHED
    assert made.from_files == (later.id,)


def test_a_run_queued_again_after_its_end_stays_in_the_queue(workspace):
    training = Training.begin(workspace, at_ms=time.time_ns() // 1_000_000 - 60_000)
    training.steps(20)
    run = training.end(RunStatus.STOPPED, "Stopped.")
    with Store.open(workspace) as store:
        store.runs.resume(run.id, "Resumed from step 20, epoch 1.")
    rebuild(workspace)
    with Store.open(workspace) as store:
        assert store.runs.get(run.id).status is RunStatus.QUEUED
        assert Ledger(store).attempt(run.id).spool_offset == (training.folder / run_files.SPOOL).stat().st_size


class Nobody:
    def devices(self, *, fresh=False):
        return ("cpu",)

    def submit(self, run, nonce, *, cpu_slots=1):
        raise AssertionError("nothing waits")

    def poll(self, run, nonce):
        from sousa_engine.runs.executors.local import LocalExecutor

        return LocalExecutor(self.workspace).poll(run, nonce)

    def stop(self, run, nonce, *, now=False):
        return False


def test_a_run_that_died_unseen_gets_its_end_from_the_next_supervisor(workspace):
    training = Training.begin(workspace)
    training.steps(30)
    rebuild(workspace)
    executor = Nobody()
    executor.workspace = workspace
    with Store.open(workspace) as store:
        assert store.runs.get(training.run.id).status is RunStatus.RUNNING
        Supervisor(store, executor).round()
        run = store.runs.get(training.run.id)
        assert run.status is RunStatus.LOST and "step 30" in run.reason
        assert len(store.metrics.curve(run.id, "train/loss").steps) == 30


def test_lines_that_the_database_never_took_are_in_the_new_one(workspace):
    training = Training.begin(workspace)
    training.steps(10)
    training.end(RunStatus.STOPPED, "Stopped.")
    with spool.SpoolWriter(training.folder / run_files.SPOOL, clock_ms=lambda: training.clock[0]) as writer:
        writer.metrics(11, {"train/loss": 0.5}, epoch=1)
        writer.event("checkpoint", "Saved at step 11.")
    with (training.folder / run_files.SPOOL).open("ab") as file:
        file.write(b'{"k":"metrics","t":1,"st')  # torn by a power cut
    assert "metrics missing in runs.db" in check.check(workspace).findings[0]
    rebuild(workspace)
    with Store.open(workspace) as store:
        assert store.metrics.summaries([training.run.id])[training.run.id]["train/loss"].last_step == 11
        assert [e.message for e in store.runs.events(training.run.id)].count("Saved at step 11.") == 1
    assert check.check(workspace).findings == ()


def test_a_new_database_beside_old_folders_is_told_and_rebuilt_with_what_may_be_missing(workspace, week_of_work):
    workspace.db.unlink()
    assert check.forgotten(workspace).startswith(f"runs.db has no runs, but there are {len(week_of_work)} run folders")
    with Store.open(workspace):  # as any command does: it makes an empty one
        pass
    assert "runs that never started" in " ".join(rebuild(workspace).lost)


@pytest.mark.parametrize("lines_left", [0, 15])
def test_what_was_cut_off_a_spool_is_taken_from_the_old_database(workspace, lines_left):
    training = Training.begin(workspace)
    training.steps(30)
    training.end(RunStatus.STOPPED, "Stopped at step 30.")
    before = shown(workspace)
    place = training.folder / run_files.SPOOL
    lines = place.read_bytes().splitlines(keepends=True)
    assert len(lines) > 30
    place.write_bytes(b"".join(lines[:lines_left]))
    assert "shorter" in check.check(workspace).findings[0]
    assert rebuild(workspace).lost == ()
    after = shown(workspace)
    with Store.open(workspace) as store:  # what a resumed trainer appends will be taken, from its first line on
        assert Ledger(store).attempt(training.run.id).spool_offset == place.stat().st_size
    for found in (before, after):
        del found[training.run.id]["launch"]
    assert after == before
    assert check.check(workspace).findings == ()


def test_folders_that_make_no_run_are_named_and_left_alone(workspace):
    good = Training.begin(workspace).finish()
    odd = workspace.runs / "260101-000000-odd1"
    odd.mkdir()
    (odd / run_files.CONFIG).write_text('{"training": {"lr": "fast"}}')
    torn = workspace.runs / "260101-000000-odd2"
    torn.mkdir()
    (torn / run_files.CONFIG).write_text('{"traini')
    (workspace.runs / "notes of mine").mkdir()
    spoil_by_deletion(workspace.db)
    made = rebuild(workspace)
    assert made.from_files == (good.id,)
    assert len(made.left_out) == 2 and "training.lr" in made.left_out[0] and "is not JSON" in made.left_out[1]
    assert odd.exists() and torn.exists()


def linked_to_zeros(place):
    place.symlink_to("/dev/zero")


def text(words):
    return lambda place: place.write_text(words)


@pytest.mark.parametrize(
    ("file", "make"),
    [
        (run_files.SPOOL, os.mkfifo),
        (run_files.SPOOL, os.mkdir),
        (run_files.SPOOL, linked_to_zeros),
        (run_files.SPOOL, text('{"k":"metrics","t":1,"step":2,"m":{"a":' + "1" * 400 + "}}\n")),
        (run_files.RESULT, os.mkdir),
        (run_files.PREDICTIONS, os.mkfifo),
        (run_files.LOG, os.mkfifo),
        (run_files.KEEPER, text("[" * 100_000)),
        (run_files.CONFIG, text('{"a":' + "[" * 100_000)),
        (run_files.EXIT, text('{"nonce": "n2", "ended_ms": 5, "steps": []}')),
    ],
)
def test_one_odd_folder_does_not_end_the_rebuild(workspace, file, make):
    good, odd = (Training.begin(workspace).finish() for _ in range(2))
    place = workspace.run_dir(odd.id) / file
    place.unlink(missing_ok=True)
    make(place)
    spoil_by_deletion(workspace.db)
    made = rebuild(workspace)
    assert good.id in made.from_files
    assert odd.id in made.from_files or [line for line in made.left_out if odd.id in line and file in line]


def test_a_row_that_this_version_cannot_read_is_kept_for_one_that_can(workspace):
    run = Training.begin(workspace).finish()
    with contextlib.closing(sqlite3.connect(workspace.db)) as plain, plain:
        plain.execute("UPDATE runs SET config_json = json_set(config_json, '$.training.of_next_year', 1)")
    assert "cannot be read" in check.check(workspace).findings[0] and run.id in check.check(workspace).findings[0]
    rebuild(workspace)
    with Store.open(workspace) as store:
        assert [one.id for one in store.runs.unreadable()] == [run.id]


def test_a_schema_with_a_byte_that_is_no_text_is_damage_with_a_sentence(workspace):
    run = Training.begin(workspace).finish()
    data = bytearray(workspace.db.read_bytes())
    data[data.find(b"CREATE TABLE runs") + 7] = 0xC5
    workspace.db.write_bytes(data)
    for look in (check.check, migrations.look, Store.open):
        with pytest.raises(WorkspaceError, match="db rebuild"):
            look(workspace)
    assert rebuild(workspace).from_files == (run.id,)


def test_a_folder_renamed_for_a_deletion_that_never_came_to_its_end_is_a_run_again(workspace):
    run = Training.begin(workspace).finish()
    workspace.trash.mkdir()
    workspace.run_dir(run.id).rename(workspace.trash / run.id)
    spoil_with_garbage(workspace.db)
    assert rebuild(workspace).from_files == (run.id,)
    with Store.open(workspace) as store:
        assert store.runs.get(run.id).status is RunStatus.FINISHED
    assert workspace.run_dir(run.id).is_dir()


def test_refused_while_a_supervisor_lives_with_the_way_to_end_it(workspace):
    Training.begin(workspace).finish()
    before = workspace.db.read_bytes()
    with workspace.supervisor_lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        with pytest.raises(WorkspaceError, match=r"A supervisor is running in .* Close the studio; .* kill 4711"):
            rebuild(workspace)
    assert workspace.db.read_bytes() == before


def test_refused_while_a_run_trains_with_the_way_to_stop_it(workspace):
    training = Training.begin(workspace)
    run_files.write_json(
        training.folder / run_files.KEEPER, {"nonce": training.nonce, "pid": 4712, "trainer_pid": 4713, "started_ms": 5}
    )
    with (training.folder / run_files.KEEPER_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(WorkspaceError, match=rf"Still training: {training.run.id}\. .* kill 4712"):
            rebuild(workspace)
    assert rebuild(workspace).runs == 1


def test_what_an_open_studio_writes_meanwhile_is_not_lost(workspace, monkeypatch):
    run = Training.begin(workspace).finish()
    finish = rebuilding.New.finish

    def note_something_first(self):
        with Store.open(workspace) as store:
            store.marks.set_note(run.id, "written meanwhile")
        finish(self)

    monkeypatch.setattr(rebuilding.New, "finish", note_something_first)
    with pytest.raises(WorkspaceError, match=r"wrote to runs\.db during the rebuild.* Close the studio"):
        rebuild(workspace)
    assert not list(workspace.root.glob(".runs.rebuilt*")) and not list(workspace.root.glob("runs.before-*"))
    monkeypatch.undo()
    rebuild(workspace)
    with Store.open(workspace) as store:
        assert store.runs.get(run.id).note == "written meanwhile"


_ENQUEUE = """
import fcntl, sys
from pathlib import Path
from sousa_engine.core import config; from sousa_engine.store import migrations
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace
workspace = Workspace(root=Path(sys.argv[1]))
class Telling:
    LOCK_EX = fcntl.LOCK_EX
    def flock(self, file, how):
        print("waits", flush=True)
        fcntl.flock(file, how)
migrations.fcntl = Telling()
with Store.open(workspace) as store:
    print(store.runs.enqueue(config.RunConfig()).id, flush=True)
    sys.stdin.readline()  # stays open while others write
"""


@pytest.mark.parametrize("spoil", [spoil_by_deletion, spoil_by_emptying])
def test_who_waits_to_make_the_database_meanwhile_writes_to_the_new_one(workspace, monkeypatch, spoil):
    run = Training.begin(workspace).finish()
    with sqlite3.connect(workspace.db) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    plain.close()
    spoil(workspace.db)
    finish, waiting = rebuilding.New.finish, []

    def begin_and_wait(self):
        command = [sys.executable, "-c", _ENQUEUE, str(workspace.root)]
        waiting.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert waiting[0].stdout.readline() == "waits\n"
        finish(self)

    monkeypatch.setattr(rebuilding.New, "finish", begin_and_wait)
    rebuild(workspace)
    queued = waiting[0].stdout.readline().strip()
    with Store.open(workspace) as store:
        store.marks.set_note(run.id, "from another process")
    waiting[0].communicate("\n", timeout=60)
    assert waiting[0].returncode == 0
    with Store.open(workspace) as store:
        assert {one.id: one.note for one in store.runs.all()} == {queued: "", run.id: "from another process"}
    assert check.check(workspace).findings == ()


@pytest.mark.parametrize("version", [99])
def test_a_newer_programs_database_is_left_to_it(workspace, version):
    Training.begin(workspace).finish()
    with sqlite3.connect(workspace.db) as plain:
        plain.execute(f"PRAGMA user_version = {version}")
    plain.close()
    with pytest.raises(WorkspaceError, match="Update the program"):
        rebuild(workspace)
    assert not list(workspace.root.glob("runs.before-rebuild.*"))


_REBUILD = """
from pathlib import Path
from sousa_engine.maintenance import rebuild
from sousa_engine.workspace import Workspace
rebuild.database_files  # all is imported
watched()
rebuild.rebuild(Workspace(root=Path(sys.argv[1])))
"""


@pytest.mark.parametrize("spoil", [lambda path: None, spoil_with_garbage], ids=["whole", "garbage"])
def test_killed_before_any_of_its_changes_there_is_the_old_database_or_the_new_one(workspace, spoil):
    run = Training.begin(workspace).finish()
    spoil(workspace.db)
    with killed_before_change(_REBUILD, workspace.root) as ended:
        for left in range(100):
            code = ended(left)
            assert workspace.db.stat().st_size > 0  # never a moment without
            if code == 0:
                break
            assert code == -signal.SIGKILL
    assert left >= 2
    assert rebuild(workspace).runs == 1
    with Store.open(workspace) as store:
        assert store.runs.get(run.id).status is RunStatus.FINISHED
    assert not list(workspace.root.glob(".runs.rebuilt*"))


def test_killed_before_the_new_one_is_in_place_the_old_one_has_all_of_its_log(workspace, monkeypatch):
    with Store.open(workspace) as store:
        waiting = store.runs.enqueue(RunConfig())  # is in no folder
        left = {path: path.read_bytes() for path in database_files(workspace.db)[:2]}
    for path, data in left.items():  # as a power cut leaves them
        path.write_bytes(data)

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        rebuild(workspace)
    with Store.open(workspace) as store:
        assert store.runs.all() == (waiting,)
    (kept,) = workspace.root.glob("runs.before-rebuild.*.db")
    with contextlib.closing(sqlite3.connect(kept)) as plain:
        assert plain.execute("SELECT id FROM runs").fetchall() == [(waiting.id,)]


def test_a_disk_that_fills_up_meanwhile_leaves_the_old_database(workspace, monkeypatch):
    Training.begin(workspace).finish()
    before = workspace.db.read_bytes()

    def full(self):
        raise WorkspaceError("The disk is full: free some space.")

    monkeypatch.setattr(rebuilding.New, "finish", full)
    with pytest.raises(WorkspaceError, match="free some space"):
        rebuild(workspace)
    assert workspace.db.read_bytes() == before
    assert not list(workspace.root.glob(".runs.rebuilt*"))


def test_a_workspace_without_any_run_becomes_an_empty_database(workspace):
    workspace.runs.mkdir()
    assert rebuild(workspace).runs == 0
    with Store.open(workspace) as store:
        assert store.runs.all() == ()


def test_what_no_folder_tells_of_is_taken_over_where_there_is_no_folder_at_all(workspace):
    with Store.open(workspace) as store:
        store.target_sets.save("mine", "ast-mini", ["a.b"], "train")
        waiting = store.runs.enqueue(RunConfig())
        sets = store.target_sets.all()
    workspace.runs.mkdir(exist_ok=True)
    rebuild(workspace)
    with Store.open(workspace) as store:
        assert store.runs.all() == (waiting,)
        assert store.target_sets.all() == sets and len(sets) == 1
