"""The life of a sweep in the store: named, noted, archived and deleted with its runs."""

import json

import pytest
from seeding import config

from sousa_engine.core.errors import ConfigError, UnknownNameError, UserError
from sousa_engine.core.records import RunFilter, SweepRun, SweepStatus
from sousa_engine.store import Store, trash

SPEC = {"axes": [{"field": "lora.r", "values": [4, 8]}], "seeds": [0]}


def added(store, name="ranks", *, over=True):
    runs = [SweepRun(config(r=r), trial, {"lora.r": r}) for trial, r in enumerate((4, 8))]
    made = store.sweeps.add(name, {**SPEC, "name": name}, runs, created_by="test")
    for run in store.sweeps.runs(made.id) if over else ():
        store.runs.request_stop(run.id)
        store.workspace.run_dir(run.id).mkdir(parents=True)
    if over:
        store.sweeps.set_status(made.id, SweepStatus.STOPPED, leaving=[SweepStatus.RUNNING])
    return made


def listed(store):
    return {row.id for row in store.runs.listing(RunFilter()).rows}


def test_a_sweep_is_renamed_in_its_definition_too_and_no_name_is_the_automatic_one(store):
    made = added(store)
    renamed = store.sweeps.rename(made.id, "  which   rank ")
    assert renamed.name == renamed.spec["name"] == "which rank" and store.sweeps.find("which rank").id == made.id
    assert store.sweeps.rename(made.id, "").name == "r" and store.sweeps.get(made.id).spec["name"] == ""
    for bad in ("a" * 121, "a\u202eb"):
        with pytest.raises(ConfigError):
            store.sweeps.rename(made.id, bad)


def test_a_note_is_kept_and_removed(store):
    made = added(store)
    assert store.sweeps.set_note(made.id, "learns \nslowly").note == "learns\nslowly"
    assert store.sweeps.set_note(made.id, "").note == ""
    with pytest.raises(UnknownNameError):
        store.sweeps.set_note("260131-142305-none", "lost")


def test_an_archived_sweep_hides_its_runs_and_comes_back_with_those_that_it_hid(store):
    made, other = added(store), added(store, "other")
    one, two = (run.id for run in store.sweeps.runs(made.id))
    store.marks.archive([one])
    store.connection.clock_ms = lambda: 5
    store.sweeps.archive([made.id])
    assert [found.id for found in store.sweeps.all(archived=False)] == [other.id]
    assert [found.id for found in store.sweeps.all(archived=True)] == [made.id] and len(store.sweeps.all()) == 2
    assert not listed(store) & {one, two}
    store.sweeps.unarchive([made.id])
    assert store.sweeps.get(made.id).archived_at_ms is None and two in listed(store) and one not in listed(store)


def test_a_sweep_that_is_extended_is_shown_again(store):
    made = added(store)
    store.sweeps.archive([made.id])
    store.sweeps.extend(made.id, [SweepRun(config(r=2), 2, {"lora.r": 2})], created_by="test")
    assert store.sweeps.get(made.id).archived_at_ms is None and len(listed(store)) == 3


@pytest.mark.parametrize("what", ["archive", "delete"])
def test_a_sweep_that_has_not_ended_is_kept(store, what):
    ended, alive = added(store), added(store, "alive", over=False)
    with pytest.raises(UserError, match=f"{alive.id} is running. Stop it first"):
        getattr(store.sweeps, what)([ended.id, alive.id])
    store.sweeps.set_status(alive.id, SweepStatus.STOPPED, leaving=[SweepStatus.RUNNING])
    with pytest.raises(UserError, match="is queued"):
        getattr(store.sweeps, what)([ended.id, alive.id])
    assert len(store.sweeps.all(archived=False)) == 2 and len(listed(store)) == 4


def test_a_deleted_sweep_takes_its_runs_their_folders_and_its_study_along(store, workspace):
    made, other = added(store), added(store, "other")
    ids = [run.id for run in store.sweeps.runs(made.id)]
    workspace.study(made.id).parent.mkdir()
    workspace.study(made.id).write_bytes(b"study")
    workspace.study(other.id).write_bytes(b"study")
    store.sweeps.delete([made.id])
    assert store.sweeps.get(made.id) is None and not any(map(store.runs.get, ids))
    assert not any(workspace.run_dir(run_id).exists() for run_id in ids) and trash.found(workspace) == []
    assert not workspace.study(made.id).exists() and workspace.study(other.id).exists()
    assert len(store.sweeps.runs(other.id)) == 2
    with pytest.raises(UnknownNameError):
        store.sweeps.delete([made.id])


@pytest.mark.parametrize("step", ["settle", "rows"])
def test_a_deletion_that_dies_half_way_is_completed_or_reverted(store, workspace, monkeypatch, step):
    """settle: after the rows are gone; rows: before."""
    made = added(store)
    ids = [run.id for run in store.sweeps.runs(made.id)]

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sousa_engine.store.marks.settle_trash", die if step == "settle" else lambda connection: None)
        if step == "rows":
            patch.setattr(type(store.connection), "writing", die)
        with pytest.raises(KeyboardInterrupt):
            store.sweeps.delete([made.id])
    assert trash.found(workspace)
    with Store.open(workspace) as again:
        kept = step == "rows"
        assert (again.sweeps.get(made.id) is not None) == kept and trash.found(workspace) == []
        assert all(workspace.run_dir(run_id).is_dir() == kept for run_id in ids)
        assert all((again.runs.get(run_id) is not None) == kept for run_id in ids)


def test_runs_that_join_while_a_sweep_is_deleted_stop_the_deletion(store, monkeypatch):
    made = added(store)
    put_in = trash.put_in

    def meanwhile(workspace, ids):
        put_in(workspace, ids)
        store.sweeps.extend(made.id, [SweepRun(config(r=2), 2, {"lora.r": 2})], created_by="test")

    monkeypatch.setattr(trash, "put_in", meanwhile)
    with pytest.raises(UserError):
        store.sweeps.delete([made.id])
    runs = store.sweeps.runs(made.id)
    assert len(runs) == 3 and all(store.workspace.run_dir(run.id).is_dir() for run in runs[:2])


def test_a_name_in_the_database_is_read_back_as_json(store):
    made = added(store)
    store.sweeps.rename(made.id, 'quotes " and · dots')
    (row,) = store.connection.query("SELECT spec_json FROM sweeps WHERE id = ?", [made.id])
    assert json.loads(row["spec_json"])["axes"] == SPEC["axes"]
