"""The store: every promise of its docstrings, on a real runs.db."""

from __future__ import annotations

import math
import random
import sqlite3
import threading

import pytest

from sousa_engine.core.config import RunConfig, build
from sousa_engine.core.errors import UnknownNameError, UserError, WorkspaceError
from sousa_engine.core.records import Event, Prediction, Progress, RunStatus
from sousa_engine.store import Store, metric_tables
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint


def points(metric, values, *, n=None, first=1):
    return [SpoolPoint(metric, step, value, None, n, 1000 + step) for step, value in enumerate(values, first)]


def batch(start=0, end=100, **parts):
    return SpoolBatch(start=start, end=end, **parts)


# Runs


def test_a_queued_run_comes_back_as_it_was_asked_for(store):
    config = build({"name": "first  try", "model": {"variant": "ast-base"}, "seed": 7, "device": "cpu"})
    run = store.runs.enqueue(config, created_by="cli")
    assert store.runs.get(run.id) == run
    assert (run.config, run.title, run.status, run.attempts) == (config, "first try", RunStatus.QUEUED, 0)
    assert run.device is None and run.ended_at_ms is None and run.progress is None and run.facts == {}
    assert [event.message for event in store.runs.events(run.id)] == ["Queued from the command line."]


def test_ids_sort_by_age_and_fit_a_url_and_a_folder(workspace):
    clock = iter(range(1_700_000_000_000, 1_700_000_060_000, 1000))
    with Store.open(workspace, clock_ms=lambda: next(clock)) as store:
        ids = [store.runs.enqueue(RunConfig()).id for _ in range(20)]
    assert ids == sorted(ids) and len(set(ids)) == 20
    assert all(workspace.run_dir(run_id).name == run_id and len(run_id) == 18 for run_id in ids)


def test_a_run_is_found_by_any_part_that_names_only_it(store):
    runs = [store.runs.enqueue(RunConfig()) for _ in range(3)]
    assert store.runs.find(runs[0].id) == runs[0]
    assert store.runs.find("last").id == runs[2].id
    tail = runs[1].id[-4:]
    assert store.runs.find(tail).id == runs[1].id
    assert store.runs.find(runs[1].id[:-1]).id == runs[1].id
    with pytest.raises(UnknownNameError, match="matches several runs:"):
        store.runs.find(runs[0].id[:3])
    for nothing in ("", "%", "' OR 1=1 --", "nope"):
        with pytest.raises(UnknownNameError):
            store.runs.find(nothing)
    mistyped = runs[1].id[:-2] + "!!"
    with pytest.raises(UnknownNameError, match="Nearest: .*" + tail):
        store.runs.find(mistyped)


def test_a_run_is_found_by_its_name_where_only_one_has_it(store):
    named, plain = store.runs.enqueue(RunConfig(name="close mic")), store.runs.enqueue(RunConfig())
    assert store.runs.find("close mic").id == named.id
    with pytest.raises(UnknownNameError, match="Nearest: close mic"):
        store.runs.find("close mik")
    store.runs.rename(plain.id, "close mic")
    with pytest.raises(UnknownNameError, match=f"matches several runs: {plain.id}, {named.id}"):
        store.runs.find("close mic")


def test_an_empty_workspace_has_no_last_run(store):
    with pytest.raises(UnknownNameError, match="no run was ever queued"):
        store.runs.find("last")
    with pytest.raises(UnknownNameError, match="no run was ever queued"):
        store.runs.find("abcd")
    assert store.runs.all() == () and store.queue.live() == ()


def test_lists_are_filtered_limited_and_ordered(store):
    runs = [store.runs.enqueue(RunConfig()) for _ in range(4)]
    store.runs.request_stop(runs[1].id)
    assert [r.id for r in store.runs.all()] == [r.id for r in reversed(runs)]
    assert [r.id for r in store.runs.all(newest_first=False, limit=2)] == [runs[0].id, runs[1].id]
    assert [r.id for r in store.runs.all(RunStatus.STOPPED)] == [runs[1].id]
    assert len(store.runs.all({RunStatus.STOPPED, RunStatus.QUEUED})) == 4
    assert store.runs.all(()) == ()


def test_a_renamed_run_keeps_its_config_otherwise(store):
    run = store.runs.enqueue(build({"name": "old", "seed": 4}))
    assert store.runs.rename(run.id, " new   name ").title == "new name"
    assert store.runs.get(run.id).config.seed == 4
    assert store.runs.rename(run.id, "").title == "ast-mini · tiny · seed 4"
    with pytest.raises(UnknownNameError):
        store.runs.rename("nope", "x")


def test_stop_before_the_start_is_immediate_and_the_run_is_never_claimed(store):
    run = store.runs.request_stop(store.runs.enqueue(RunConfig()).id)
    assert run.status is RunStatus.STOPPED and run.reason == "Stopped before it started." and run.ended_at_ms
    assert Ledger(store).claim("cpu", "n1") is None


def test_stop_of_a_live_run_is_an_intent_and_of_an_ended_one_nothing(store):
    run = store.runs.enqueue(RunConfig())
    Ledger(store).claim("cpu", "n1")
    assert store.runs.request_stop(run.id).status is RunStatus.STOPPING
    assert store.runs.request_stop(run.id).status is RunStatus.STOPPING
    assert [e.kind for e in store.runs.events(run.id)].count("stop requested") == 1
    assert Ledger(store).finish(run.id, RunStatus.FINISHED, None, nonce="n1")
    assert store.runs.request_stop(run.id).status is RunStatus.FINISHED
    with pytest.raises(UnknownNameError):
        store.runs.request_stop("nope")


# The supervisor's verbs


def test_claims_go_oldest_first_one_a_slot_to_those_that_asked_for_it(store):
    gpu = store.runs.enqueue(build({"device": "cuda:0"}))
    first, second = store.runs.enqueue(RunConfig()), store.runs.enqueue(build({"device": "cpu"}))
    assert set(store.queue.waiting_devices()) == {"auto", "cpu", "cuda:0"}
    claimed = Ledger(store).claim("cpu", "n1")
    assert (claimed.id, claimed.status, claimed.device, claimed.attempts) == (first.id, RunStatus.STARTING, "cpu", 1)
    assert Ledger(store).claim("cpu", "n2") is None  # the slot is held
    assert Ledger(store).claim("cuda:0", "n3", devices=["cuda:0"]).id == gpu.id
    assert {run.id for run in store.queue.live()} == {gpu.id, first.id}
    Ledger(store).finish(first.id, RunStatus.FAILED, "x", nonce="n1")
    assert Ledger(store).claim("cpu", "n4", devices=["auto"]) is None
    assert Ledger(store).claim("cpu", "n5").id == second.id


def test_two_supervisors_never_claim_the_same_run(workspace):
    with Store.open(workspace) as store:
        ids = [store.runs.enqueue(RunConfig()).id for _ in range(40)]
    claimed: list[str] = []

    def claim_all(slot):
        with Store.open(workspace) as mine:
            while run := Ledger(mine).claim(slot, slot):
                claimed.append(run.id)
                assert Ledger(mine).finish(run.id, RunStatus.FINISHED, None, nonce=slot)

    threads = [threading.Thread(target=claim_all, args=(f"cuda:{i % 2}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Store.open(workspace) as store:
        while run := Ledger(store).claim("cpu", "rest"):  # two threads on one slot may both have given way
            claimed.append(run.id)
            Ledger(store).finish(run.id, RunStatus.FINISHED, None, nonce="rest")
    assert sorted(claimed) == sorted(ids)


def test_only_the_launch_that_holds_the_run_may_change_it(store):
    run = store.runs.enqueue(RunConfig())
    Ledger(store).claim("cpu", "n1")
    assert not Ledger(store).mark_running(run.id, "other", started_at_ms=5)
    assert not Ledger(store).finish(run.id, RunStatus.LOST, "?", nonce="other")
    assert not Ledger(store).finish(run.id, RunStatus.FAILED, "?", nonce=None)  # None is for queued runs alone
    assert Ledger(store).mark_running(run.id, "n1", started_at_ms=5)
    assert not Ledger(store).mark_running(run.id, "n1", started_at_ms=6)
    assert not Ledger(store).requeue(run.id, "n1", "?")
    assert Ledger(store).finish(run.id, RunStatus.FINISHED, None, nonce="n1", ended_at_ms=9)
    assert not Ledger(store).finish(run.id, RunStatus.FAILED, "again", nonce="n1")
    ended = store.runs.get(run.id)
    assert (ended.status, ended.started_at_ms, ended.ended_at_ms, ended.device) == (RunStatus.FINISHED, 5, 9, "cpu")


def test_a_stop_asked_for_during_the_start_is_not_forgotten(store):
    run = store.runs.enqueue(RunConfig())
    Ledger(store).claim("cpu", "n1")
    store.runs.request_stop(run.id)
    assert Ledger(store).mark_running(run.id, "n1", started_at_ms=5)
    assert store.runs.get(run.id).status is RunStatus.STOPPING


def test_a_launch_that_came_to_nothing_is_queued_again_and_counted(store):
    run = store.runs.enqueue(RunConfig())
    Ledger(store).claim("cpu", "n1")
    assert Ledger(store).requeue(run.id, "n1", "The keeper died.")
    assert (store.runs.get(run.id).status, store.runs.get(run.id).device) == (RunStatus.QUEUED, None)
    assert Ledger(store).claim("cpu", "n2").attempts == 2
    assert Ledger(store).attempt(run.id).nonce == "n2"


def test_a_queued_run_that_can_never_start_is_failed(store):
    run = store.runs.enqueue(build({"device": "cuda:7"}))
    assert Ledger(store).finish(run.id, RunStatus.FAILED, "cuda:7 is not here.", nonce=None)
    assert store.runs.get(run.id).status is RunStatus.FAILED


# Metrics


def test_a_batch_is_taken_whole_and_once(store):
    run = store.runs.enqueue(RunConfig())
    taken = batch(
        points=points("train/loss", [3.0, 2.0, 1.0]),
        progress=Progress(phase="training", done=3, total=9, epoch=1),
        events=[Event(at_ms=5, kind="checkpoint", message="Saved.")],
        facts={"weights_label": "random weights", "parameters": {"trainable": 5}},
    )
    assert Ledger(store).ingest(run.id, taken)
    assert not Ledger(store).ingest(run.id, taken)  # a second supervisor, or the same one after a crash
    assert not Ledger(store).ingest(run.id, batch(start=99, end=120, points=points("train/loss", [7.0], first=9)))
    assert Ledger(store).attempt(run.id).spool_offset == 100
    assert store.metrics.curve(run.id, "train/loss").mean == (3.0, 2.0, 1.0)
    assert [e.kind for e in store.runs.events(run.id)].count("checkpoint") == 1
    known = store.runs.get(run.id)
    assert known.progress == Progress(phase="training", done=3, total=9, epoch=1)
    assert known.weights_label == "random weights" and known.facts["parameters"]["trainable"] == 5
    assert Ledger(store).ingest(run.id, batch(start=100, end=130, facts={"parameters": {"total": 50}}))
    assert store.runs.get(run.id).facts["parameters"] == {"trainable": 5, "total": 50}
    assert (
        store.runs.get(run.id).progress == known.progress and store.runs.get(run.id).weights_label == "random weights"
    )


def test_a_batch_that_cannot_be_stored_leaves_nothing_behind(store):
    run = store.runs.enqueue(RunConfig())
    bad = [*points("train/loss", [3.0]), SpoolPoint("train/loss", None, 1.0, None, None, 1)]  # no step
    with pytest.raises((sqlite3.IntegrityError, TypeError)):
        Ledger(store).ingest(run.id, batch(points=bad, facts={"a": 1}))
    assert (
        Ledger(store).attempt(run.id).spool_offset == 0
        and store.metrics.names(run.id) == ()
        and store.runs.get(run.id).facts == {}
    )
    assert Ledger(store).ingest(run.id, batch(points=points("train/loss", [3.0])))


def test_not_a_number_is_a_gap_in_the_curve_and_the_run_says_where_it_diverged(store):
    run = store.runs.enqueue(RunConfig())
    assert store.metrics.first_divergence(run.id) is None
    values = [1.0, math.nan, math.inf, -math.inf, 0.5]
    Ledger(store).ingest(run.id, batch(points=points("train/loss", values) + points("valid/loss", [math.nan], first=4)))
    curve = store.metrics.curve(run.id, "train/loss")
    assert curve.mean == (1.0, None, None, None, 0.5) and curve.low == curve.high == curve.mean
    assert store.metrics.first_divergence(run.id) == ("train/loss", 2)
    found = store.metrics.summaries([run.id])[run.id]
    assert (found["train/loss"].best, found["train/loss"].last) == (0.5, 0.5)
    assert (found["valid/loss"].best, found["valid/loss"].last, found["valid/loss"].last_step) == (None, None, 4)
    with sqlite3.connect(store.workspace.db) as plain:  # kept as what they were, for anyone with SQL
        kept = plain.execute("SELECT not_finite FROM metric_points WHERE value IS NULL ORDER BY step").fetchall()
    assert [kind for (kind,) in kept] == ["nan", "inf", "-inf", "nan"]
    plain.close()


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 5])
def test_of_epochs_with_equal_accuracy_the_lowest_loss_is_best_however_the_points_arrive(store, cut):
    run = store.runs.enqueue(RunConfig())
    every = points("valid/accuracy", [0.6, 0.6, 0.6]) + points("valid/loss", [1.9, 1.1, 1.1])
    Ledger(store).ingest(run.id, batch(points=every[:cut]))
    Ledger(store).ingest(run.id, batch(start=100, end=110, points=every[cut:]))
    found = store.metrics.summaries([run.id])[run.id]["valid/accuracy"]
    assert (found.best, found.best_step) == (0.6, 2)  # of equals in both, the first: a later one is no better


def test_best_is_lowest_for_a_loss_and_highest_otherwise_and_n_is_kept(store):
    run, other = store.runs.enqueue(RunConfig()), store.runs.enqueue(RunConfig())
    Ledger(store).ingest(
        run.id, batch(points=points("valid/loss", [3, 1, 2], n=9) + points("valid/accuracy", [0.1, 0.9, 0.9]))
    )
    Ledger(store).ingest(run.id, batch(start=100, end=110, points=points("valid/loss", [0.5, 4], n=9, first=8)))
    found = store.metrics.summaries([run.id, other.id])
    loss, accuracy = found[run.id]["valid/loss"], found[run.id]["valid/accuracy"]
    assert (loss.best, loss.best_step, loss.last, loss.last_step, loss.n) == (0.5, 8, 4.0, 9, 9)
    assert (accuracy.best, accuracy.best_step, accuracy.n) == (0.9, 2, None)  # the first of equals
    assert found[other.id] == {}
    assert store.metrics.names(run.id) == ("valid/accuracy", "valid/loss")


def test_update_norms_are_read_at_a_step_and_listed_nowhere(store):
    run, other = store.runs.enqueue(RunConfig()), store.runs.enqueue(RunConfig())
    assert store.metrics.updates(run.id) == ()
    found = points("update/layers.1.q", [0.25, math.nan], first=4) + points("update/layers.0.q", [0.5, 0.75], first=4)
    Ledger(store).ingest(run.id, batch(points=found + points("valid/loss", [2.0], first=4)))
    Ledger(store).ingest(other.id, batch(points=points("update/layers.0.q", [9.0], first=70)))
    (first, second), (third, fourth) = store.metrics.updates(run.id, 4), store.metrics.updates(run.id)
    assert (first.metric, first.step, first.value) == ("update/layers.0.q", 4, 0.5)
    assert (second.metric, second.value) == ("update/layers.1.q", 0.25)
    assert (third.step, third.value) == (5, 0.75) and math.isnan(fourth.value)
    assert store.metrics.updates(run.id, 6) == ()
    assert store.metrics.names(run.id) == ("valid/loss",) and store.metrics.names(other.id) == ()
    assert store.metrics.summaries([run.id, other.id]).keys() == {run.id, other.id}
    assert store.metrics.summaries([run.id])[run.id].keys() == {"valid/loss"}
    assert store.metrics.first_divergence(run.id) is None
    assert store.metrics.curve(run.id, "update/layers.0.q").mean == (0.5, 0.75)
    with pytest.raises(UnknownNameError):
        store.metrics.updates("nope")


def expected_curve(values, width, first, last):
    """steps, mean, low, high by the definition, from {step: value}."""
    rows = []
    for bucket in sorted({step // width for step in values if first // width <= step // width <= last // width}):
        inside = {step: value for step, value in values.items() if step // width == bucket}
        finite = [value for value in inside.values() if math.isfinite(value)]
        mean = sum(finite) / len(finite) if finite else None
        rows.append((min(inside), mean, min(finite, default=None), max(finite, default=None)))
    return rows


@pytest.mark.parametrize("gap", [1, 3, 400])
def test_a_curve_is_the_points_in_buckets_of_a_power_of_two(store, gap):
    rng = random.Random(gap)
    run = store.runs.enqueue(RunConfig())
    steps = sorted(rng.sample(range(1, 3000 * gap), 2900))
    values = {step: rng.choice([rng.random(), rng.random(), math.nan]) for step in steps}
    cuts = sorted(rng.sample(range(1, len(steps)), 40))  # arrives in batches of uneven length
    for start, (begin, end) in enumerate(zip([0, *cuts], [*cuts, None], strict=True)):
        part = [SpoolPoint("x", step, values[step], None, None, 0) for step in steps[begin:end]]
        Ledger(store).ingest(run.id, batch(start=start, end=start + 1, points=part))
    high = max(values)
    for first, last in ((None, None), (high // 3, high // 2), (1, 700), (high - 50, high + 50)):
        for most in (2, 60, 500, 10_000):
            curve = store.metrics.curve(run.id, "x", first=first, last=last, max_points=most)
            low_step, high_step = max(first or 1, min(values)), min(last or high, high)
            rows = expected_curve(values, curve.width, low_step, high_step)
            assert curve.width & (curve.width - 1) == 0 and len(curve.steps) <= most + 1
            assert curve.steps == tuple(row[0] for row in rows)
            assert curve.mean == pytest.approx([row[1] for row in rows], nan_ok=True)
            assert (curve.low, curve.high) == (tuple(row[2] for row in rows), tuple(row[3] for row in rows))
            assert curve.width == 1 or len(values) > most


def test_a_metric_the_run_does_not_have_is_an_empty_curve(store):
    run = store.runs.enqueue(RunConfig())
    assert store.metrics.curve(run.id, "no/such").steps == ()
    Ledger(store).ingest(run.id, batch(points=points("x", [1.0])))
    assert store.metrics.curve(run.id, "x", first=5000).steps == ()
    with pytest.raises(UnknownNameError):
        store.metrics.curve("nope", "x")


def test_steps_that_are_repeated_replace_and_never_count_twice(store):
    run, fresh = store.runs.enqueue(RunConfig()), store.runs.enqueue(RunConfig())
    old, new = [0.1] + [5.0] * 99, [2.0] * 60
    Ledger(store).ingest(run.id, batch(points=points("loss", old)))
    Ledger(store).ingest(run.id, batch(start=100, end=200, points=points("loss", new) + points("loss", [7.0])))
    Ledger(store).ingest(fresh.id, batch(points=points("loss", [7.0, *new[1:], *old[60:]])))
    for most in (1, 7, 20, 500):
        assert store.metrics.curve(run.id, "loss", max_points=most) == store.metrics.curve(
            fresh.id, "loss", max_points=most
        )
    assert store.metrics.summaries([run.id])[run.id] == store.metrics.summaries([fresh.id])[fresh.id]
    assert store.metrics.summaries([run.id])[run.id]["loss"].best == 2.0


def test_predictions_are_kept_by_split_and_replaced(store):
    run = store.runs.enqueue(RunConfig())
    rows = [
        Prediction(clip_id=f"c{i}", split=split, label="a", predicted="b", probability=0.5, label_probability=0.25)
        for i in range(3)
        for split in ("valid", "test")
    ]
    for _ in range(2):
        Ledger(store).save_predictions(run.id, rows)
    assert store.runs.predictions(run.id, "test") == tuple(row for row in rows if row.split == "test")
    Ledger(store).save_predictions(run.id, rows[:1])
    assert store.runs.predictions(run.id, "test") == ()


def test_clip_scores_count_the_runs_that_were_right(store):
    def answer(clip, predicted):
        return Prediction(
            clip_id=clip, split="test", label="a", predicted=predicted, probability=0.5, label_probability=0.25
        )

    runs = [store.runs.enqueue(RunConfig()).id for _ in range(3)]
    Ledger(store).save_predictions(runs[0], [answer("c1", "a"), answer("c2", "a")])
    Ledger(store).save_predictions(runs[1], [answer("c1", "a"), answer("c2", "b")])
    Ledger(store).save_predictions(runs[2], [answer("c1", "b")])
    assert store.runs.clip_scores(runs[:2], "test") == (("c1", "a", 2, 2), ("c2", "a", 1, 2))
    assert store.runs.clip_scores(runs[:2], "valid") == () == store.runs.clip_scores([], "test")


def test_moments_tell_when_a_step_was_measured(store):
    run = store.runs.enqueue(RunConfig())
    Ledger(store).ingest(run.id, batch(points=points("train/loss", [1.0, 2.0, 3.0])))
    assert store.metrics.moments(run.id, "train/loss", (1, 3, 99)) == {1: 1001, 3: 1003}
    assert store.metrics.moments(run.id, "no such metric", (1,)) == {}


def test_target_sets_are_saved_replaced_listed_and_deleted(workspace):
    clock = iter(range(1000))
    with Store.open(workspace, clock_ms=lambda: next(clock)) as store:
        store.target_sets.save("attention", "ast-mini", ["a.q", "a.k"], "train")
        store.target_sets.save("attention", "ast-base", ["b"], "train")
        saved = store.target_sets.save("attention", "ast-mini", ["a.v"], "lora")
        assert store.target_sets.all("ast-mini") == (saved,) and saved.paths == ("a.v",)
        assert [found.variant for found in store.target_sets.all()] == ["ast-mini", "ast-base"]
        store.target_sets.delete("attention", "ast-mini")
        assert [found.variant for found in store.target_sets.all()] == ["ast-base"]


@pytest.mark.parametrize("name", ["", " ", "a" * 81, "over\u202eride", "a\x1b[31m"])
def test_a_target_set_has_a_name_that_can_be_shown(workspace, name):
    with Store.open(workspace) as store, pytest.raises(UserError, match="cannot name a set"):
        store.target_sets.save(name, "ast-mini", ["a"], "train")


# For people, and for full disks


def test_people_with_a_sql_prompt_read_the_overview(store):
    run = store.runs.enqueue(RunConfig())
    Ledger(store).claim("cpu", "n")
    found = [SpoolPoint("valid/accuracy", 40, 0.5, 2, 120, 0), SpoolPoint("test/accuracy", 60, 0.75, 3, 200, 0)]
    Ledger(store).ingest(run.id, batch(points=found, facts={"parameters": {"trainable": 12}}))
    plain = sqlite3.connect(store.workspace.db)
    plain.row_factory = sqlite3.Row
    row = dict(plain.execute("SELECT * FROM runs_overview").fetchone())
    plain.close()
    expected = {"id": run.id, "title": "ast-mini · tiny · seed 0", "status": "starting", "device": "cpu"}
    expected |= {"epochs_done": 2, "max_epochs": 10, "best_valid_accuracy": 0.5, "valid_clips": 120}
    expected |= {"test_accuracy": 0.75, "test_clips": 200, "trainable_parameters": 12, "lora_rank": 8}
    assert expected.items() <= row.items()
    assert row["created_at"].startswith("20") and row["ended_at"] is None


def test_a_full_disk_is_a_sentence_and_the_store_goes_on_when_there_is_space_again(store):
    run = store.runs.enqueue(RunConfig())
    pages = store.connection.db.execute("PRAGMA page_count").fetchone()[0]
    store.connection.db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to a full disk
    many = batch(points=points("x", [float(i) for i in range(5000)]))
    with pytest.raises(WorkspaceError, match=r"disk of .* is full"):
        Ledger(store).ingest(run.id, many)
    assert Ledger(store).attempt(run.id).spool_offset == 0
    store.connection.db.execute("PRAGMA max_page_count = 1000000")
    assert Ledger(store).ingest(run.id, many)
    assert store.metrics.summaries([run.id])[run.id]["x"].last_step == 5000


def test_levels_are_prepared_for_the_widths_that_curves_use(store):
    run = store.runs.enqueue(RunConfig())
    Ledger(store).ingest(run.id, batch(points=points("x", [1.0] * 100)))
    rows = store.connection.query(
        "SELECT width, count(*) AS buckets, sum(point_count) AS n FROM metric_levels GROUP BY width"
    )
    assert [row["width"] for row in rows] == [1 << shift for shift in metric_tables.LEVEL_SHIFTS]
    assert all(row["n"] == 100 for row in rows)


# Going on


def ended(store, status, *, nonce="n1", at=(10, 50)):
    run = store.runs.enqueue(RunConfig())
    Ledger(store).claim("cpu", nonce)
    Ledger(store).mark_running(run.id, nonce, started_at_ms=at[0])
    Ledger(store).ingest(run.id, batch(points=points("train/loss", [3.0, 2.0, 1.0]), facts={"train_s": 1}))
    Ledger(store).finish(run.id, status, "Why.", nonce=nonce, ended_at_ms=at[1])
    return run.id


@pytest.mark.parametrize("status", [RunStatus.STOPPED, RunStatus.FAILED, RunStatus.LOST])
def test_a_resumed_run_is_queued_again_as_the_same_run(store, status):
    other, run_id = store.runs.enqueue(build({"device": "cuda:0"})).id, ended(store, status)
    store.marks.archive([run_id])
    run = store.runs.resume(run_id, "Resumed from step 3.")
    assert (run.status, run.reason, run.device, run.attempts) == (RunStatus.QUEUED, None, None, 0)
    assert run.started_at_ms is None and run.ended_at_ms is None and run.archived_at_ms is None
    assert Ledger(store).attempt(run_id) == (None, 100), "no nonce of before, and its spool is read on from there"
    assert store.metrics.curve(run_id, "train/loss").steps == (1, 2, 3)
    assert [event.kind for event in store.runs.events(run_id)].count(status.value) == 1, "its end stays told"
    with pytest.raises(UserError, match="is queued"):
        store.runs.resume(run_id, "Twice.")
    assert store.runs.get(other).status is RunStatus.QUEUED
    assert Ledger(store).claim("cpu", "n2").id == run_id
    assert not Ledger(store).finish(run_id, RunStatus.LOST, "?", nonce="n1")
    Ledger(store).mark_running(run_id, "n2", started_at_ms=1_000)
    Ledger(store).finish(run_id, RunStatus.FINISHED, None, nonce="n2", ended_at_ms=1_020)
    run = store.runs.get(run_id)
    assert run.earlier_ms == ((10, 50),) and run.seconds == 0.06 and run.facts["train_s"] == 1
    assert store.runs.rows([run_id])[0].seconds == 0.06
    with pytest.raises(UserError, match=r"finished.*more epochs"):
        store.runs.resume(run_id, "For more.")


def test_lists_sort_by_the_time_of_all_launches(store):
    often = ended(store, RunStatus.STOPPED, at=(0, 100))
    store.runs.resume(often, "On.")
    Ledger(store).claim("cpu", "n2")
    Ledger(store).mark_running(often, "n2", started_at_ms=500)
    Ledger(store).finish(often, RunStatus.STOPPED, "Why.", nonce="n2", ended_at_ms=510)
    store.runs.resume(often, "Taken out of the queue again.")
    store.runs.request_stop(often)
    assert store.runs.get(often).seconds is None and store.runs.get(often).earlier_ms == ((0, 100), (500, 510))
    store.runs.resume(often, "On.")
    Ledger(store).claim("cpu", "n3")
    Ledger(store).mark_running(often, "n3", started_at_ms=900)
    Ledger(store).finish(often, RunStatus.STOPPED, "Why.", nonce="n3", ended_at_ms=901)
    once = ended(store, RunStatus.STOPPED, nonce="n4", at=(0, 60))
    assert [row.id for row in store.runs.listing(sort="took").rows] == [often, once]
    assert store.runs.get(often).seconds == 0.111


def test_a_run_is_resumed_by_one_of_many_who_ask_at_once(workspace):
    with Store.open(workspace) as store:
        run_id = ended(store, RunStatus.STOPPED)
    won = []

    def ask():
        with Store.open(workspace) as mine:
            try:
                won.append(mine.runs.resume(run_id, "On."))
            except UserError:
                pass

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
