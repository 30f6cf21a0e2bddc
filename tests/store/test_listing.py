"""Lists of runs, and what people say of them: tags, notes, the archive, deleting; on a real runs.db."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import threading

import pytest
from seeding import Training
from seeding import config as seeded

from sousa_engine.analysis.compare import results
from sousa_engine.analysis.export import runs_csv
from sousa_engine.core.config import RunConfig, build
from sousa_engine.core.errors import UnknownNameError, UserError, WorkspaceError
from sousa_engine.core.records import RunFilter, RunStatus, SweepRun, SweepStatus
from sousa_engine.store import Store, trash
from sousa_engine.store.ledger import Ledger
from sousa_engine.store.listing import SORTS
from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint


@pytest.fixture
def over(store):
    """over(name=...): a run that is over, with a folder; cheap, because nothing was trained."""

    def make(**values):
        run = store.runs.request_stop(store.runs.enqueue(build(values)).id)
        folder = store.workspace.run_dir(run.id)
        folder.mkdir(parents=True)
        (folder / "train.log").write_text(f"log of {run.id}\n")
        return run

    return make


def measured(store, run, **values):
    """Give a run metrics, as the trainer reports them."""
    points = [SpoolPoint(f"{split}/accuracy", 9, value, 1, 200, 1) for split, value in values.items()]
    assert Ledger(store).ingest(
        run.id, SpoolBatch(start=Ledger(store).attempt(run.id).spool_offset, end=10**6, points=points)
    )


def ids(found):
    return [row.id for row in found.rows]


# Listing


def test_a_line_of_the_list_says_what_the_run_says(workspace, store):
    training = Training.begin(workspace, seeded(seed=3, max_epochs=2))
    for run in (training.finish(), store.runs.enqueue(build({"data": {"dataset": r"C:\clips\mine"}, "name": "Übung"}))):
        (row,) = store.runs.rows([run.id])
        run = store.runs.get(run.id)
        (result,) = results([run], store.metrics.summaries([run.id]))
        assert (row.id, row.title, row.status, row.seed) == (run.id, run.title, run.status, run.config.seed)
        assert (row.dataset, row.backbone) == (run.config.dataset_name, run.config.model.variant)
        assert (row.device, row.weights) == (run.device or run.config.device, run.config.model.weights)
        assert (row.created_at_ms, row.ended_at_ms) == (run.created_at_ms, run.ended_at_ms)
        assert (row.trainable, row.seconds, row.is_random) == (result.trainable, result.seconds, run.is_random)
        assert (row.valid, row.test) == tuple(p and p.value for p in (result.best_valid, result.test))
        assert (row.valid_n, row.test_n) == tuple(p and p.n for p in (result.best_valid, result.test))
        assert (row.target_set, row.target_modules) == (run.config.lora.target_set, len(run.config.lora.targets))


@pytest.mark.parametrize("dataset", ["tiny", "/a/b/c/", "a/a/a", "/tmp/a b.csv", r"D:\x\y", "ä/ö", "mixed\\and/both"])
def test_the_list_names_a_data_set_as_the_run_does(store, dataset):
    run = store.runs.enqueue(build({"data": {"dataset": dataset}}))
    (row,) = store.runs.rows([run.id])
    assert (row.dataset, row.title) == (run.config.dataset_name, run.title)


def test_a_line_says_in_short_what_trains(store):
    none = store.runs.enqueue(RunConfig())
    whole = store.runs.enqueue(build({"lora": {"method": "bitfit"}}))
    target = {"path": "a", "kind": "Linear", "shape": (9, 9)}
    one = store.runs.enqueue(build({"lora": {"method": "dora", "targets": [target], "target_set": "mine"}}))
    assert [row.trains for row in store.runs.rows([none.id, whole.id, one.id])] == [
        "head alone",
        "BitFit",
        "mine · 1 module · DoRA",
    ]


def test_the_list_follows_what_happens_to_a_run(store):
    run = store.runs.enqueue(RunConfig())

    def row():
        return store.runs.rows([run.id])[0]

    assert (row().status, row().device, row().progress) == (RunStatus.QUEUED, "auto", None)
    Ledger(store).claim("cpu", "n1")
    Ledger(store).mark_running(run.id, "n1", started_at_ms=1000)
    Ledger(store).ingest(run.id, SpoolBatch(start=0, end=9, facts={"parameters": {"trainable": 12}}))
    store.runs.rename(run.id, "another")
    assert (row().status, row().device, row().trainable, row().title) == (RunStatus.RUNNING, "cpu", 12, "another")
    Ledger(store).finish(run.id, RunStatus.FINISHED, None, nonce="n1", ended_at_ms=4000)
    assert (row().status, row().seconds) == (RunStatus.FINISHED, 3.0)


def test_a_list_is_filtered_by_everything_at_once(store, over):
    runs = {name: over(name=name) for name in ("one", "two", "three")}
    store.runs.enqueue(build({"name": "waiting"}))
    store.marks.add_tags([runs["one"].id, runs["two"].id], ["best"])
    store.marks.add_tags([runs["two"].id], ["paper"])
    assert store.runs.listing().total == 4
    assert set(ids(store.runs.listing(RunFilter(tags=["best"])))) == {runs["one"].id, runs["two"].id}
    assert ids(store.runs.listing(RunFilter(tags=["best", "paper"]))) == [runs["two"].id]
    assert ids(store.runs.listing(RunFilter(tags=["bes"]))) == []
    store.marks.add_tags([runs["three"].id], ['the "best"', 'very"best'])
    assert set(ids(store.runs.listing(RunFilter(tags=["best"])))) == {runs["one"].id, runs["two"].id}, "a part of a tag"
    assert ids(store.runs.listing(RunFilter(tags=['the "best"']))) == [runs["three"].id]
    found = store.runs.listing(RunFilter(words="t", statuses=[RunStatus.STOPPED], tags=["best"]))
    assert set(ids(found)) == {runs["one"].id, runs["two"].id}, "a tag's letters are words too"
    assert ids(store.runs.listing(RunFilter(words="three", statuses=[RunStatus.QUEUED]))) == []


def test_words_are_found_wherever_they_stand_in_any_case_of_letters(store):
    config = {"name": "Übung EINS", "model": {"weights": "random"}, "lora": {"target_set": "attention"}}
    run = store.runs.enqueue(build(config))
    store.marks.set_note(run.id, "too loud: 100 % wrong")
    store.marks.add_tags([run.id], ["Straße"])
    store.runs.enqueue(build({"name": "other", "model": {"variant": "beats-mini"}, "data": {"dataset": "micro"}}))
    of_fields = ("ast-MINI", "tiny", run.id[-4:], "attention", "random")
    for words in ("übung", "eins ÜB", *of_fields, "LOUD", "100 %", "straße"):
        assert ids(store.runs.listing(RunFilter(words=words))) == [run.id], words
    for words in ("Ubung", "eins zwei", "loud\x00", "_", "[", '"', run.id[:3]):
        assert ids(store.runs.listing(RunFilter(words=words))) == [], words


def test_every_order_puts_what_is_missing_last_and_the_newest_of_equals_first(store):
    runs = [store.runs.enqueue(build({"name": name})) for name in ("b", "A", "c", "a")]
    for run, test in zip(runs, (0.5, None, 0.9, 0.5), strict=True):
        if test is not None:
            measured(store, run, test=test, valid=1 - test)

    def order(sort, descending):
        return [row.title for row in store.runs.listing(sort=sort, descending=descending).rows]

    assert order("test", True) == ["c", "a", "b", "A"]
    assert order("test", False) == ["a", "b", "c", "A"]
    assert order("valid", True) == ["a", "b", "c", "A"]
    assert order("title", False) == ["a", "A", "b", "c"]
    assert order("created", True) == ["a", "c", "A", "b"]
    for sort in SORTS:
        assert sorted(order(sort, True)) == ["A", "a", "b", "c"], sort
    with pytest.raises(UnknownNameError, match=r"No sort order named 'tset'\. Nearest: test"):
        store.runs.listing(sort="tset")


def test_runs_of_one_millisecond_stand_in_the_order_they_were_made(workspace):
    with Store.open(workspace, clock_ms=lambda: 1_700_000_000_000) as store:
        made = [store.runs.enqueue(RunConfig()).id for _ in range(4)]
        assert ids(store.runs.listing(sort="created", descending=False)) == made
        assert ids(store.runs.listing(sort="created", descending=True)) == made[::-1]
        assert [run.id for run in store.runs.all(newest_first=False)] == made
        assert [run.id for run in store.runs.all()] == made[::-1] and store.runs.find("last").id == made[-1]


def test_a_list_is_read_in_pages_and_lines_by_id(store):
    made = [store.runs.enqueue(RunConfig()).id for _ in range(7)][::-1]
    pages = [store.runs.listing(limit=3, offset=offset) for offset in (0, 3, 6, 9)]
    assert [ids(page) for page in pages] == [made[:3], made[3:6], made[6:], []]
    assert {page.total for page in pages} == {7} and store.runs.count() == 7
    assert [row.id for row in store.runs.rows([made[5], "nonsense", made[1]])] == [made[5], made[1]]


def test_an_outline_has_a_mean_for_each_span_and_a_gap_where_nothing_was_finite(store):
    run, other = store.runs.enqueue(RunConfig()), store.runs.enqueue(RunConfig())
    values = [float("nan") if step <= 10 else step / 100 for step in range(1, 101)]
    points = [SpoolPoint("valid/accuracy", step, value, None, 9, 1) for step, value in enumerate(values, 1)]
    Ledger(store).ingest(run.id, SpoolBatch(start=0, end=9, points=points))
    found = store.metrics.sparklines([run.id, other.id], "valid/accuracy", points=10)
    assert list(found) == [run.id] and len(found[run.id]) == 10
    assert found[run.id][0] is None and found[run.id][-1] == pytest.approx(0.96, abs=0.01)
    assert store.metrics.sparklines([run.id], "no/metric") == {}


# Tags, note, archive


def test_tags_are_kept_in_order_each_once_and_counted(store):
    one, two = store.runs.enqueue(RunConfig()), store.runs.enqueue(RunConfig())
    assert store.marks.set_tags(one.id, [" paper", "Best", "paper"]).tags == ("Best", "paper")
    store.marks.add_tags([one.id, two.id], ["a,b \"c\" 'd'", "best"])
    assert store.runs.get(one.id).tags == ("a,b \"c\" 'd'", "Best", "best", "paper")
    assert store.marks.tags() == {"a,b \"c\" 'd'": 2, "Best": 1, "best": 2, "paper": 1}
    store.marks.remove_tags([one.id, two.id], ["Best", "never there"])
    assert store.runs.get(two.id).tags == ("a,b \"c\" 'd'", "best")
    assert store.marks.set_tags(one.id, []).tags == ()


@pytest.mark.parametrize("bad", ["", "   ", "x" * 41, "two\nlines", "a\x00b"])
def test_what_cannot_be_a_tag_changes_nothing(store, bad):
    run = store.runs.enqueue(RunConfig())
    with pytest.raises(UserError, match="one line of 1 to 40 characters"):
        store.marks.add_tags([run.id], ["fine", bad])
    with pytest.raises(UserError, match="one line of 1 to 40 characters"):
        store.marks.set_tags(run.id, [bad])
    assert store.runs.get(run.id).tags == ()


def test_a_tag_for_a_run_that_is_gone_is_given_to_none(store):
    run = store.runs.enqueue(RunConfig())
    with pytest.raises(UnknownNameError, match="nonsense"):
        store.marks.add_tags([run.id, "nonsense"], ["best"])
    assert store.runs.get(run.id).tags == ()


def test_two_who_tag_at_once_both_count(workspace, store):
    run = store.runs.enqueue(RunConfig())

    def tag(name):
        with Store.open(workspace) as mine:
            for i in range(10):
                mine.marks.add_tags([run.id], [f"{name}{i}"])

    threads = [threading.Thread(target=tag, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.runs.get(run.id).tags) == 20


def test_a_note_keeps_its_lines_and_has_a_length(store):
    run = store.runs.enqueue(RunConfig())
    assert store.marks.set_note(run.id, "  one \r\ntwo\n\n").note == "one\ntwo"
    assert store.marks.set_note(run.id, "x" * 4000).note == "x" * 4000
    with pytest.raises(UserError, match="4,001 characters; the limit is 4,000"):
        store.marks.set_note(run.id, "x" * 4001)
    assert store.marks.set_note(run.id, "").note == ""
    with pytest.raises(UnknownNameError):
        store.marks.set_note("nonsense", "x")


def test_archived_runs_are_out_of_the_list_and_kept(store, over):
    old, new = over(), over()
    store.marks.archive([old.id])
    at = store.runs.get(old.id).archived_at_ms
    assert at is not None and ids(store.runs.listing()) == [new.id]
    assert ids(store.runs.listing(RunFilter(archived=True))) == [old.id]
    assert store.runs.listing(RunFilter(archived=None)).total == len(store.runs.all()) == 2
    store.marks.archive([old.id])
    assert store.runs.get(old.id).archived_at_ms == at, "the first time counts"
    store.marks.unarchive([old.id])
    assert store.runs.get(old.id).archived_at_ms is None and store.runs.listing().total == 2


def test_a_run_that_is_not_over_can_neither_be_archived_nor_deleted(store, over):
    done, waiting = over(), store.runs.enqueue(RunConfig())
    for verb, word in ((store.marks.archive, "archived"), (store.marks.delete, "deleted")):
        with pytest.raises(UserError, match=f"ended can be {word}: {waiting.id} is queued. Stop them first."):
            verb([done.id, waiting.id])
    assert store.runs.get(done.id) == done and store.workspace.run_dir(done.id).is_dir()


# Deleting


def tables(store, run_id):
    """How many rows each table still has of a run that was number 1."""
    names = ("runs", "listed_runs", "events", "predictions", "metric_points", "metric_levels", "metric_summaries")
    return {n: store.connection.query(f"SELECT count(*) AS n FROM {n} WHERE run_number = 1")[0]["n"] for n in names}


def test_a_deleted_run_leaves_nothing_behind_and_the_others_alone(workspace, store):
    gone = Training.begin(workspace, seeded(seed=1, max_epochs=1)).finish()
    kept = Training.begin(workspace, seeded(seed=2, max_epochs=1)).finish()
    before = tables(store, gone.id)
    assert all(before.values()), before
    store.marks.delete([gone.id])
    assert not any(tables(store, gone.id).values())
    assert not workspace.run_dir(gone.id).exists() and trash.found(workspace) == []
    assert store.runs.get(kept.id) == kept and len(store.runs.predictions(kept.id, "test")) == 200
    assert workspace.run_dir(kept.id).is_dir()
    with pytest.raises(UnknownNameError):
        store.marks.delete([gone.id])


def test_a_run_that_never_had_a_folder_is_deleted_too(store):
    run = store.runs.request_stop(store.runs.enqueue(RunConfig()).id)
    store.marks.delete([run.id, run.id])
    assert store.runs.all() == ()


def test_one_bad_id_and_nothing_is_deleted(store, over):
    run = over()
    for bad in ("nonsense", "../..", "", ".trash"):
        with pytest.raises(UnknownNameError):
            store.marks.delete([run.id, bad])
    assert store.runs.get(run.id) == run and store.workspace.run_dir(run.id).is_dir()


def test_a_run_of_an_open_sweep_is_not_deleted_until_the_sweep_is_over(store):
    sweep = store.sweeps.add("ranks", {}, [SweepRun(RunConfig(), 0, {})], created_by="page")
    (run,) = store.sweeps.runs(sweep.id)
    store.runs.request_stop(run.id)
    for status in (SweepStatus.RUNNING, SweepStatus.PAUSED):
        with pytest.raises(UserError, match=f"belongs to sweep {sweep.id}, which is {status}"):
            store.marks.delete([run.id])
        store.sweeps.set_status(sweep.id, SweepStatus.PAUSED, leaving=[SweepStatus.RUNNING])
    store.sweeps.set_status(sweep.id, SweepStatus.STOPPED, leaving=[SweepStatus.PAUSED])
    store.marks.delete([run.id])
    assert store.sweeps.runs(sweep.id) == () and store.sweeps.get(sweep.id)


def test_a_folder_that_cannot_be_moved_stops_the_deletion_and_what_was_moved_comes_back(store, over, monkeypatch):
    runs = [over(), over()]
    real = trash.Path.rename

    def rename(path, target):
        if path == store.workspace.run_dir(runs[1].id):
            raise PermissionError(13, "Permission denied")
        return real(path, target)

    monkeypatch.setattr(trash.Path, "rename", rename)
    with pytest.raises(WorkspaceError, match=f"{runs[1].id} cannot be moved .*Permission denied"):
        store.marks.delete([run.id for run in runs])
    assert all(store.runs.get(run.id) and store.workspace.run_dir(run.id).is_dir() for run in runs)


CRASHES = {  # where the process is killed -> whether the runs are gone once the store was opened again
    "after the first folder was moved": ("rename", False),
    "after all folders were moved": ("sync_folder", False),
    "within the transaction": ("execute", False),
    "after the transaction": ("empty", True),
    "while folders are removed": ("rmtree", True),
}


@pytest.mark.parametrize("point", CRASHES)
def test_a_deletion_that_is_killed_leaves_nothing_half(workspace, store, over, point):
    runs, bystander = [over(), over(), over()], over()
    run_ids, (step, gone) = [run.id for run in runs], CRASHES[point]
    child = os.fork()
    if child == 0:
        try:
            kill_at(step)
            with Store.open(workspace) as mine:
                mine.marks.delete(run_ids)
        finally:
            os._exit(1)  # not killed: the point was never reached
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert trash.found(workspace), "it was killed too early or too late to test anything"
    with Store.open(workspace) as again:
        left = [run.id for run in again.runs.all()]
        assert (set(run_ids) & set(left)) == (set() if gone else set(run_ids))
        for run in [*([] if gone else runs), bystander]:
            assert (workspace.run_dir(run.id) / "train.log").read_text() == f"log of {run.id}\n"
    assert trash.found(workspace) == []
    assert sorted(p.name for p in workspace.runs.iterdir() if not p.name.startswith(".")) == sorted(left)


def kill_at(step):
    """Have this process killed just after (a rename), or instead of, that step of a deletion."""

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    if step == "rename":
        real = trash.Path.rename
        trash.Path.rename = lambda path, target: (real(path, target), die())
    elif step == "execute":
        from sousa_engine.store.migrations import Database

        run = Database.execute
        Database.execute = lambda db, sql, *args: die() if sql.startswith("DELETE FROM runs") else run(db, sql, *args)
    elif step == "rmtree":
        shutil.rmtree = lambda folder, **kwargs: ((folder / "train.log").unlink(), die())
    else:
        setattr(trash, step, die)


def test_who_opens_the_store_during_a_deletion_leaves_its_folders_alone(workspace, store, over):
    run = over()
    with trash.alone(workspace, wait=True):
        trash.put_in(workspace, [run.id])
        Store.open(workspace).close()
        assert trash.found(workspace) == [run.id]
    Store.open(workspace).close()
    assert trash.found(workspace) == [] and workspace.run_dir(run.id).is_dir()


def test_what_is_no_runs_folder_in_the_trash_is_left_alone(workspace, store):
    (workspace.trash / "my..files").mkdir(parents=True)
    (workspace.trash / "260131-142305-k7mq").mkdir()
    Store.open(workspace).close()
    assert [place.name for place in workspace.trash.iterdir()] == ["my..files"]


def test_a_run_that_was_moved_elsewhere_and_linked_loses_its_link_alone(workspace, store, over, tmp_path_factory):
    run, elsewhere = over(), tmp_path_factory.mktemp("disk") / "run"
    workspace.run_dir(run.id).rename(elsewhere)
    workspace.run_dir(run.id).symlink_to(elsewhere)
    store.marks.delete([run.id])
    assert not workspace.run_dir(run.id).is_symlink() and (elsewhere / "train.log").exists()


def test_the_size_of_folders_is_that_of_their_files(workspace, store, over):
    run = over()
    (workspace.run_dir(run.id) / "checkpoints").mkdir()
    (workspace.run_dir(run.id) / "checkpoints" / "big").write_bytes(b"x" * 5000)
    size = len(f"log of {run.id}\n") + 5000
    assert trash.size_bytes(workspace, [run.id, "260131-142305-none"]) == size


# CSV


def test_csv_is_harmless_in_a_spreadsheet_and_numbers_stay_numbers(store):
    run = store.runs.enqueue(build({"name": "=1+2", "seed": 3}))
    measured(store, run, test=0.25)
    store.marks.set_note(run.id, '-2, "quoted"\nsecond line')
    for title in ("+1", "-1", "@x", "plain = +1"):
        store.runs.enqueue(build({"name": title}))
    text = runs_csv(store.runs.listing(descending=False).rows)
    first, *others = csv.DictReader(io.StringIO(text, newline=""))
    assert first["title"] == "'=1+2" and first["note"] == '\'-2, "quoted"\nsecond line'
    assert (first["seed"], first["test_accuracy"], first["test_clips"], first["best_valid_accuracy"]) == (
        *("3", "0.25", "200"),
        "",
    )
    assert [row["title"] for row in others] == ["'+1", "'-1", "'@x", "plain = +1"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_every_beginning_of_a_formula_is_met(start):
    from sousa_engine.analysis.export import harmless

    assert harmless(f"{start}1") == f"'{start}1"
    assert harmless(-1.5) == -1.5 and harmless(None) is None
