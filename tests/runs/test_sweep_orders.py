"""A sweep from its plan to its end: with the real store, the real Optuna, and trainings played by hand."""

from __future__ import annotations

import json
import math
import subprocess
import time

import pytest

from sousa_engine.analysis.sweeps import failures, nearest_names, seconds_left, tally, trial_rows, trials
from sousa_engine.core import grammar, sweep_spec
from sousa_engine.core.config import differences
from sousa_engine.core.errors import ConfigError, PreflightError, RunError, TargetError, UnknownNameError
from sousa_engine.core.records import Progress, RunStatus, SweepStatus
from sousa_engine.runs import ensure, preflight, prepare, sweep_learner, sweep_orders, sweep_plan, timing
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import intake
from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint

TINY = {"data": {"dataset": "micro"}, "training": {"max_epochs": 9}}
GRID = {"axes": {"model": ["ast-mini", "beats-mini"], "targets": ["core", "default"]}, "seeds": [0, 1], "base": TINY}
ONE_EPOCH = {"data": {"dataset": "micro"}, "training": {"max_epochs": 1}}  # for sweeps that never look into a run
RATES = {"axes": {"training.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "base": TINY, "seeds": [0], "trials": 6}
BY_TPE = RATES | {"sampler": "tpe", "base": ONE_EPOCH}


@pytest.fixture(autouse=True)
def nobody_supervises(monkeypatch):
    """The tests are the supervisor."""
    monkeypatch.setattr(ensure, "ensure", lambda workspace, options=(): False)


def started(store, **values):
    return sweep_orders.start(store.workspace, sweep_spec.build(values), created_by="test")


class Trainers:
    """One slot: claims what is queued and plays its training, an epoch at a time."""

    def __init__(self, store, reach):
        self.store, self.reach, self.at = store, reach, {}

    def claim(self):
        run = Ledger(self.store).claim("cpu", "nonce")
        if run is not None:
            assert Ledger(self.store).mark_running(run.id, "nonce", started_at_ms=1)
        return run

    def epoch(self, run, epoch):
        start = self.at.get(run.id, 0)
        value = self.reach(run.config) * (1 - 0.5**epoch)
        point = SpoolPoint("valid/accuracy", 10 * epoch, value, epoch, 100, 1)
        assert Ledger(self.store).ingest(run.id, SpoolBatch(start=start, end=start + 1, points=[point]))
        self.at[run.id] = start + 1

    def end(self, run, status=RunStatus.FINISHED, reason=None):
        assert Ledger(self.store).finish(run.id, status, reason, nonce="nonce")

    def play(self, sweep_id, rounds=500):
        """Supervisor and trainers in turn, until the sweep is over."""
        for _ in range(rounds):
            found = self.store.sweeps.get(sweep_id)
            if found.status.is_over:
                return found
            sweep_learner.step(self.store, found, 1)
            run = self.claim()
            if run is None:
                continue
            for epoch in range(1, run.config.training.max_epochs + 1):
                self.epoch(run, epoch)
                sweep_learner.step(self.store, self.store.sweeps.get(sweep_id), 1)
                if self.store.runs.get(run.id).status is RunStatus.STOPPING:
                    self.end(run, RunStatus.STOPPED, "Stopped by the trainer.")
                    break
            else:
                self.end(run)
        raise AssertionError("the sweep does not end")


def by_rate(config):
    """Best at lr = 1e-3."""
    return 0.9 - 0.3 * abs(math.log10(config.training.lr) + 3)


# Before


def test_a_plan_names_every_run_by_its_setting_and_seed(workspace):
    found = sweep_plan.plan(sweep_spec.build(GRID), workspace)
    assert [(run.trial, run.config.name, run.config.seed) for run in found.runs] == [
        (number, name, seed)
        for number, name in enumerate(
            ["ast-mini · core", "ast-mini · default", "beats-mini · core", "beats-mini · default"]
        )
        for seed in (0, 1)
    ]
    assert found.run_count == 8 and found.problems == ()
    assert found.seconds is None and len(found.untimed) == 4
    assert found.disk_bytes > 8_000_000
    core, default = (found.runs[i].config.lora.targets for i in (0, 2))
    assert len(core) < len(default), "core and default are sets of this backbone"


def test_what_could_only_fail_is_said_once_a_cause_and_nothing_is_queued(store):
    values = {**GRID, "axes": {"model": ["ast-mini", "beats-mini", "mn10_as"], "targets": ["q_proj", "fc1"]}}
    found = sweep_plan.plan(sweep_spec.build(values), store.workspace)
    assert sum(len(problem.settings) for problem in found.problems) + len(found.runs) // 2 == 6
    with pytest.raises(PreflightError, match=r"mn10_as · q_proj: 'q_proj' .* Nearest"):
        started(store, **values)
    assert store.runs.all() == () and store.sweeps.all() == ()
    made = sweep_orders.start(store.workspace, sweep_spec.build(values), created_by="test", leave_out_invalid=True)
    assert len(store.sweeps.runs(made.id)) == len(found.runs) > 0


def test_a_familys_name_means_its_published_variant_and_missing_weights_name_the_mini_and_the_import(workspace):
    found = sweep_plan.plan(sweep_spec.build({**GRID, "axes": {"model": ["beats"]}}), workspace)
    (problem,) = found.problems
    assert "beats-mini" in problem.message and "weights import FILE" in problem.message


def test_a_probe_in_a_process_of_its_own_tells_how_long_a_sweep_takes_before_anything_was_trained(workspace):
    spec = sweep_spec.build({**GRID, "axes": {"model": ["efficientat-mini"]}})
    before = sweep_plan.plan(spec, workspace)
    assert timing.start(workspace, before.untimed)
    assert not timing.start(workspace, before.untimed), "one measures at a time"
    end = time.monotonic() + 300
    while (doing := intake.look(timing.folder(workspace))) and doing.is_running:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert doing is None, doing
    (pace,) = timing.known(workspace).values()
    assert pace.step_s > 0 and pace.peak_memory_mib > 100
    after = sweep_plan.plan(spec, workspace)
    steps = preflight.preflight(before.runs[0].config, workspace).total_steps
    assert after.untimed == () and after.seconds == pytest.approx(2 * (steps * pace.step_s + pace.start_s))


def test_what_was_measured_once_is_not_measured_again(workspace, monkeypatch):
    spec = sweep_spec.build({**GRID, "axes": {"model": ["efficientat-mini"]}})
    untimed = sweep_plan.plan(spec, workspace).untimed
    pace = {"step_s": 0.5, "start_s": 4.0, "peak_memory_mib": 900.0}
    answer = subprocess.CompletedProcess([], 0, json.dumps(pace), "")
    monkeypatch.setattr(timing.subprocess, "run", lambda *words, **options: answer)
    paces = timing.measure(workspace, untimed)
    assert [vars(found) for found in paces.values()] == [pace]
    monkeypatch.setattr(timing.subprocess, "run", lambda *words, **options: pytest.fail("measured again"))
    assert timing.measure(workspace, untimed) == paces


def test_sets_of_an_ablation_are_measured_once_where_they_are_as_large(workspace):
    sets = sweep_plan.ablation("ast-mini", ["core"])
    spec = sweep_spec.build({**GRID, "axes": {"model": ["ast-mini"], "targets": list(sets)}, "sets": sets})
    counts = [len(config.lora.targets) for config in sweep_plan.plan(spec, workspace).untimed]
    assert counts == [16, 12, 4, 8]


def test_the_ablation_of_a_run_differs_from_it_in_its_targets_alone(workspace):
    words = ["model=ast-mini", "data=micro", "lora.r=4", "training.lr=0.002", "seed=7", "name=mine"]
    config = prepare.prepare(grammar.parse(words)).config
    spec = sweep_plan.ablation_of(config)
    assert spec.title == "ablation of mine" and spec.seeds == (0, 1, 2)
    by_set = {run.setting["lora.targets"]: run.config for run in sweep_plan.plan(spec, workspace).runs}
    same = config.model_copy(update={"seed": 2, "name": by_set["all"].name})
    assert differences([same, by_set["all"]]) == {"lora.target_set": [config.lora.target_set, "all"]}
    assert set(differences([same, by_set["early layers"]])) == {"name", "lora.target_set", "lora.targets"}


def test_a_probe_that_fails_says_why(workspace):
    (config,) = sweep_plan.plan(sweep_spec.build({**GRID, "axes": {"model": ["beats-mini"]}}), workspace).untimed
    missing = config.model_copy(update={"data": config.data.model_copy(update={"dataset": "/nowhere"})})
    with pytest.raises(RunError, match=r"Timing beats-mini failed: .*/nowhere"):
        timing.measure(workspace, [missing])


def told(store, run, progress, facts):
    at = Ledger(store).attempt(run.id).spool_offset
    assert Ledger(store).ingest(run.id, SpoolBatch(start=at, end=at + 1, progress=progress, facts=facts))


def test_earlier_runs_tell_how_long_a_sweep_takes(store):
    values = {**GRID, "axes": {"model": ["ast-mini"], "targets": ["core"]}}
    first = started(store, **values)
    trainers = Trainers(store, lambda config: 0.5)
    while run := trainers.claim():
        trainers.end(run)
    found = sweep_plan.plan(sweep_spec.build(values), store.workspace)
    assert found.seconds is None, "runs that left no time are no measure"
    assert store.sweeps.get(first.id).status is SweepStatus.RUNNING
    for run in store.sweeps.runs(first.id):  # as a trainer leaves them: 40 steps an epoch, stopped early
        clips = {"clips": {"train": 640, "valid": 160, "test": 200}}
        told(store, run, Progress(phase="testing", done=1, total=1), {"train_s": 40.0, "epochs": 2, "data": clips})
    runs = store.sweeps.runs(first.id)
    around = sum((run.ended_at_ms - run.started_at_ms) / 1000 - 40.0 for run in runs) / len(runs)
    found = sweep_plan.plan(sweep_spec.build(values), store.workspace)
    steps = 40 * found.runs[0].config.training.max_epochs
    assert found.seconds == pytest.approx(len(found.runs) * (0.5 * steps + max(0.0, around)))
    store.queue.set_cpu_slots(2)  # these runs did not record how many shared the CPU
    assert sweep_plan.plan(sweep_spec.build(values), store.workspace).seconds == found.seconds
    for run in runs:
        told(store, run, Progress(phase="testing", done=1, total=1), {"device": "cpu", "threads": 2, "cpu_slots": 1})
    assert sweep_plan.plan(sweep_spec.build(values), store.workspace).seconds is None, "none trained beside another"
    store.queue.set_cpu_slots(1)
    told(store, runs[0], Progress(phase="testing", done=1, total=1), {"threads": 1, "train_s": 4_000.0})
    again = sweep_plan.plan(sweep_spec.build(values), store.workspace)
    assert again.seconds == pytest.approx(found.seconds, rel=1e-6), "the time with another thread does not count"


# A grid


def test_a_grid_is_queued_whole_and_ends_when_all_its_runs_are_over(store):
    made = started(store, **GRID)
    assert (made.status, made.name, len(store.sweeps.runs(made.id))) == (SweepStatus.RUNNING, "model × targets", 8)
    over = Trainers(store, lambda config: 0.5).play(made.id)
    assert over.status is SweepStatus.FINISHED and over.ended_at_ms
    assert {run.status for run in store.sweeps.runs(made.id)} == {RunStatus.FINISHED}


def test_a_paused_sweep_leaves_its_runs_in_the_queue_and_lets_others_pass(store):
    made = started(store, **GRID)
    assert sweep_learner.pause(store, made.id) and not sweep_learner.pause(store, made.id)
    assert store.queue.waiting_devices() == () and Ledger(store).claim("cpu", "n") is None
    other = store.runs.enqueue(sweep_plan.plan(sweep_spec.build(GRID), store.workspace).runs[0].config)
    assert Ledger(store).claim("cpu", "n").id == other.id
    assert sweep_orders.resume(store, made.id) and store.queue.waiting_devices() == ("auto",)


def test_a_stopped_sweep_takes_its_runs_off_the_queue_and_asks_the_running_one_to_save(store):
    made = started(store, **GRID)
    running = Trainers(store, lambda config: 0.5).claim()
    assert sweep_orders.stop(store, made.id) and not sweep_orders.stop(store, made.id)
    statuses = [run.status for run in store.sweeps.runs(made.id)]
    assert statuses.count(RunStatus.STOPPED) == 7 and store.runs.get(running.id).status is RunStatus.STOPPING
    assert store.sweeps.get(made.id).reason == "Stopped by the user."


def test_more_seeds_train_every_setting_again_and_a_finished_sweep_runs_again(store):
    made = started(store, **GRID)
    Trainers(store, lambda config: 0.5).play(made.id)
    with pytest.raises(ConfigError, match="lists one twice"):
        sweep_orders.add_seeds(store, store.sweeps.get(made.id), [1], created_by="test")
    new = sweep_orders.add_seeds(store, store.sweeps.get(made.id), [7], created_by="test")
    assert len(new) == 4 and store.sweeps.get(made.id).status is SweepStatus.RUNNING
    assert store.sweeps.get(made.id).spec["seeds"] == [0, 1, 7]
    assert [[run.config.seed for run in runs] for runs in trials(store.sweeps.runs(made.id)).values()] == (
        [[0, 1, 7]] * 4
    )


def test_an_axis_is_extended_by_the_settings_that_are_new(store):
    made = started(store, **GRID)
    new = sweep_orders.extend(store, store.sweeps.get(made.id), "targets", ["q_proj"], created_by="test")
    runs = [store.runs.get(run_id) for run_id in new]
    assert [(run.trial, run.title, run.config.seed) for run in runs] == [
        (4, "ast-mini · q_proj", 0),
        (4, "ast-mini · q_proj", 1),
        (5, "beats-mini · q_proj", 0),
        (5, "beats-mini · q_proj", 1),
    ]
    with pytest.raises(PreflightError, match=r"training\.lr is not an axis .*: model, lora\.targets"):
        sweep_orders.extend(store, store.sweeps.get(made.id), "training.lr", [0.1], created_by="test")
    with pytest.raises(PreflightError, match="Nearest"):
        sweep_orders.extend(store, store.sweeps.get(made.id), "targets", ["qproj"], created_by="test")


def test_runs_that_failed_for_one_reason_are_trained_again_with_other_targets(store):
    made = started(store, **GRID)
    trainers = Trainers(store, lambda config: 0.5)
    while run := trainers.claim():
        if run.trial == 2:
            trainers.end(run, RunStatus.FAILED, f"'query' matches nothing (run {run.id}, step {run.config.seed}).")
        else:
            trainers.end(run)
    (failure,) = failures(store.sweeps.runs(made.id))
    assert len(failure.runs) == 2 and failure.cause.startswith("'query' matches nothing")
    with pytest.raises(TargetError, match="Nearest"):
        sweep_orders.rerun(store, made, failure.runs, targets=["qkvv"], created_by="test")
    new = sweep_orders.rerun(store, made, failure.runs, targets=["q_proj"], created_by="test")
    again = [store.runs.get(run_id) for run_id in new]
    assert [(run.trial, run.config.seed, run.title) for run in again] == [
        (2, 0, "beats-mini · q_proj"),
        (2, 1, "beats-mini · q_proj"),
    ]
    assert {target.path.rpartition(".")[2] for target in again[0].config.lora.targets} == {"q_proj"}
    assert failures(store.sweeps.runs(made.id)) == (), "they are seen to: the new runs took their place"
    assert len(store.sweeps.runs(made.id)) == 10, "and the failed ones are still there to look at"


def test_a_row_of_a_trial_holds_what_each_seed_reached_and_nothing_that_was_not_measured(store):
    made = started(store, **GRID)
    trainers = Trainers(store, lambda config: 0.4 + 0.1 * config.seed)
    for end in (RunStatus.FINISHED, RunStatus.FINISHED, RunStatus.FAILED):
        run = trainers.claim()
        trainers.epoch(run, 1)
        trainers.end(run, end)
    runs = store.sweeps.runs(made.id)
    rows = trial_rows(runs, store.metrics.summaries([run.id for run in runs]))
    assert [row.statuses for row in rows] == [{"finished": 2}, {"failed": 1, "queued": 1}, {"queued": 2}, {"queued": 2}]
    assert rows[0].valid == (0.2, 0.25) and rows[0].mean_valid == pytest.approx(0.225) and rows[0].mean_test is None
    assert rows[1].valid == (0.2,) and rows[2].mean_valid is None and rows[0].label == "ast-mini · core"


def test_a_tally_counts_a_run_that_was_trained_again_once(store):
    made = started(store, **GRID)
    trainers = Trainers(store, lambda config: 0.5)
    for end in (RunStatus.FINISHED, RunStatus.FAILED):
        trainers.end(trainers.claim(), end)
    failed = [run for run in store.sweeps.runs(made.id) if run.status is RunStatus.FAILED]
    sweep_orders.rerun(store, made, failed, created_by="test")
    count = tally(made, store.sweeps.runs(made.id))
    assert (count.over, count.expected, count.to_come) == (1, 8, 0)
    assert count.statuses == {"finished": 1, "queued": 7}


def test_time_left_is_what_runs_of_the_same_backbone_took_and_unknown_before_the_first(store):
    made = started(store, **GRID)
    assert seconds_left(store.sweeps.runs(made.id), 0, 0) is None
    for seconds in (10, 20):
        run = Ledger(store).claim("cpu", "n")
        Ledger(store).mark_running(run.id, "n", started_at_ms=1_000)
        Ledger(store).finish(run.id, RunStatus.FINISHED, None, nonce="n", ended_at_ms=1_000 + 1_000 * seconds)
    running = Ledger(store).claim("cpu", "n")
    Ledger(store).mark_running(running.id, "n", started_at_ms=50_000)
    runs = store.sweeps.runs(made.id)
    assert seconds_left(runs, 0, now_ms=54_000) == 15 - 4 + 5 * 15
    assert seconds_left(runs, 2, now_ms=54_000) == 15 - 4 + 7 * 15
    claimed = Ledger(store).claim("cuda:0", "n")
    Ledger(store).mark_running(claimed.id, "n", started_at_ms=54_000)
    assert seconds_left(store.sweeps.runs(made.id), 0, now_ms=54_000) == (11 + 15 + 4 * 15) / 2, "two at a time"


@pytest.mark.parametrize(
    ("cause", "names"),
    [
        ("'query' is no module of htsat (timm 1). Nearest: qkv, attn.proj. Tick it again.", ["qkv", "attn.proj"]),
        ("5 failed: `query` matches nothing in htsat; nearest `qkv`", ["qkv"]),
        ("The loss became nan at step 4.", []),
    ],
)
def test_the_names_that_a_failure_offers_are_found(cause, names):
    assert nearest_names(cause) == names


# Drawn settings


def test_a_random_sweep_draws_the_same_settings_from_the_same_seed_and_more_of_them_later(store):
    values = {**RATES, "sampler": "random"}
    one, two = (sweep_plan.plan(sweep_spec.build(values), store.workspace).runs for _ in range(2))
    assert [run.config.training.lr for run in one] == [run.config.training.lr for run in two]
    assert len({run.config.training.lr for run in one}) == 6
    made = started(store, **values)
    sweep_orders.add_trials(store, made, 2, created_by="test")
    rates = [run.config.training.lr for run in store.sweeps.runs(made.id)]
    assert rates[:6] == [run.config.training.lr for run in one] and len(set(rates)) == 8


def test_more_trials_than_combinations_are_refused(workspace):
    spec = sweep_spec.build({"axes": {"training.lr": [0.1, 0.2]}, "sampler": "random", "trials": 3, "base": TINY})
    with pytest.raises(PreflightError, match="3 trials were requested, but there are only 2 combinations: use a grid"):
        sweep_plan.plan(spec, workspace)


def test_tpe_draws_near_what_went_well(store):
    made = started(store, **BY_TPE | {"trials": 24})
    assert store.sweeps.runs(made.id) == (), "nothing is drawn before a slot is free"
    over = Trainers(store, by_rate).play(made.id)
    runs = store.sweeps.runs(made.id)
    assert over.status is SweepStatus.FINISHED and len(runs) == 24
    reached = [by_rate(run.config) for run in runs]
    assert sum(reached[12:]) > sum(reached[:12])


def test_two_seeds_of_a_drawn_setting_are_told_as_their_mean(store):
    made = started(store, **BY_TPE | {"trials": 3, "seeds": [0, 1]})
    Trainers(store, lambda config: 0.5 + 0.2 * config.seed).play(made.id)
    study = sweep_learner.study(store.workspace, made, sweep_spec.build(made.spec))
    assert [round(trial.value, 3) for trial in study.trials] == [round(0.6 * (1 - 0.5**1), 3)] * 3


def test_asha_gives_the_weaker_trials_up_early_and_says_when_and_why(store):
    made = started(store, **RATES | {"sampler": "asha", "trials": 18, "seeds": [0, 1]})
    over = Trainers(store, by_rate).play(made.id)
    assert over.status is SweepStatus.FINISHED
    count = tally(over, store.sweeps.runs(made.id))
    assert count.over == count.expected and count.statuses["pruned"]
    found = trials(store.sweeps.runs(made.id))
    pruned = [runs for runs in found.values() if runs[0].is_pruned]
    kept = [runs for runs in found.values() if not runs[0].is_pruned]
    assert len({runs[0].config.training.lr for runs in found.values()}) == 18
    assert len(found) == 18 and len(pruned) >= 6 and kept
    assert all(len(runs) == 1 for runs in pruned) and all(len(runs) == 2 for runs in kept)
    assert pruned[0][0].reason.startswith("Pruned after epoch ") and "top third" in pruned[0][0].reason
    assert pruned[0][0].pruned_at_step in (10, 30)
    best_pruned = max(by_rate(runs[0].config) for runs in pruned)
    assert max(by_rate(runs[0].config) for runs in kept) > best_pruned
    with pytest.raises(PreflightError, match="Only the axes of a grid can be extended"):
        sweep_orders.extend(store, over, "training.lr", [0.1], created_by="test")


def test_a_sweep_that_prunes_is_expected_to_train_other_seeds_only_of_what_it_keeps(store):
    made = started(store, **RATES | {"sampler": "asha", "trials": 4, "seeds": [0, 1]})
    assert tally(made, ()).expected == 8
    sweep_learner.step(store, made, 1)
    trainers = Trainers(store, by_rate)
    run = trainers.claim()
    assert tally(made, store.sweeps.runs(made.id)).expected == 8
    Ledger(store).prune(run.id, 10, "weak")
    trainers.end(run, RunStatus.STOPPED)
    count = tally(made, store.sweeps.runs(made.id))
    assert (count.over, count.expected, count.to_come) == (1, 7, 6)


def test_a_setting_that_was_drawn_and_not_queued_before_a_crash_is_queued_by_the_next_supervisor(store, monkeypatch):
    made = started(store, **BY_TPE | {"trials": 3})

    def crash(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.sweeps, "extend", crash)
        with pytest.raises(KeyboardInterrupt):
            sweep_learner.step(store, made, 1)
    assert store.sweeps.runs(made.id) == ()
    drawn = sweep_learner.study(store.workspace, made, sweep_spec.build(made.spec)).trials
    sweep_learner.step(store, made, 1)
    (run,) = store.sweeps.runs(made.id)
    assert len(drawn) == 1 and run.config.training.lr == drawn[0].params["training.lr"]
    assert Trainers(store, by_rate).play(made.id).status is SweepStatus.FINISHED


def test_a_sweep_that_draws_nothing_but_nonsense_fails_and_says_why(store):
    values = BY_TPE | {"trials": 40, "axes": {"lora.r": {"low": 190, "high": 1024}}}
    made = store.sweeps.add("ranks", sweep_spec.build(values).model_dump(mode="json"), (), created_by="test")
    over = Trainers(store, lambda config: 0.5).play(made.id)
    assert over.status is SweepStatus.FAILED and "were invalid" in over.reason and "lora.r" in over.reason
    assert all(run.config.lora.r <= 192 for run in store.sweeps.runs(made.id))


def test_ends_of_a_range_that_could_only_fail_are_seen_before_the_start(store):
    values = BY_TPE | {"axes": {"lora.r": {"low": 4, "high": 1024}}}
    with pytest.raises(PreflightError, match=r"r 1024: lora\.r = 1024 is above the width"):
        started(store, **values)


def test_a_failed_run_is_told_as_failed_and_the_sweep_goes_on(store):
    made = started(store, **BY_TPE | {"trials": 4})
    trainers = Trainers(store, by_rate)
    sweep_learner.step(store, made, 1)
    trainers.end(trainers.claim(), RunStatus.FAILED, "The loss became nan.")
    assert trainers.play(made.id).status is SweepStatus.FINISHED
    states = [t.state.name for t in sweep_learner.study(store.workspace, made, sweep_spec.build(made.spec)).trials]
    assert states == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


# Each run once


SMALL = {"base": TINY, "seeds": [0], "sampler": "random", "trials": 3}


def settings_of(spec, workspace):
    return [dict(run.setting) for run in sweep_plan.plan(sweep_spec.build(spec), workspace).runs]


def test_settings_that_train_the_same_run_are_planned_once_and_named(workspace):
    axes = {
        "model": ["ast-mini"],
        "lora.method": ["lora", "ia3"],
        "lora.r": [4, 8],
        "targets": ["default", "all-linear"],
    }
    found = sweep_plan.plan(sweep_spec.build({"axes": axes, "base": TINY, "seeds": [0]}), workspace)
    assert [run.config.name for run in found.runs] == [
        "ast-mini · lora · r 4 · default", "ast-mini · lora · r 8 · default", "ast-mini · ia3 · r 4 · default"
    ]  # fmt: skip
    assert found.run_count == 3 and [run.trial for run in found.runs] == [0, 1, 2]
    whys = {sweep_spec.label(repeat.setting): repeat.why for repeat in found.repeats}
    assert whys["ast-mini · ia3 · r 8 · default"] == "IA3 does not read lora.r here"
    assert whys["ast-mini · lora · r 4 · all-linear"] == "both stand for the same values" and len(whys) == 5
    assert any("5 settings train the same as another one" in note for note in found.notes)


def test_an_alias_is_the_backbone_that_it_stands_for(workspace):
    base = {**TINY, "model": {"weights": "random"}}
    found = sweep_plan.plan(sweep_spec.build({"axes": {"model": ["ast", "ast-base"]}, "base": base}), workspace)
    same = {run.config.model_dump_json(exclude={"name"}) for run in found.runs}
    assert len(found.repeats) == 1 or len(same) == 6, "the same run is never planned under two names"


@pytest.mark.parametrize("log", [False, True])
def test_a_random_sweep_over_few_whole_numbers_draws_each_once_and_refuses_more(workspace, log):
    axes = {"lora.r": {"low": 1, "high": 40, "log": log}}
    found = settings_of({**SMALL, "axes": axes, "trials": 40}, workspace)
    assert sorted(setting["lora.r"] for setting in found) == list(range(1, 41))
    assert settings_of({**SMALL, "axes": axes, "trials": 10}, workspace) == found[:10], "a longer one starts with them"
    with pytest.raises(PreflightError, match="41 trials were requested, but there are only 40 combinations: request"):
        settings_of({**SMALL, "axes": axes, "trials": 41}, workspace)


@pytest.mark.parametrize("rates", [{"low": 0.0, "high": 0.5}, [0.1, 0.2, 0.3, 0.4]])
def test_a_random_sweep_over_what_no_run_reads_ends_and_says_how_many_settings_there_are(workspace, rates):
    axes = {"lora.method": ["ia3"], "training.lr": [0.1, 0.2], "lora.dropout": rates}
    with pytest.raises(PreflightError, match=r"only 2 different settings: request at most 2\. .*IA3 does not read"):
        settings_of({**SMALL, "axes": axes}, workspace)
    assert len(settings_of({**SMALL, "axes": axes, "trials": 2}, workspace)) == 2


def test_more_combinations_than_a_sweep_can_train_are_counted_and_not_built(workspace):
    rates = [round(k * 1e-4, 6) for k in range(1, 13)]
    fields = ["training.lr", "training.head_lr", "training.weight_decay", "training.warmup", "lora.dropout"]
    values = {"axes": dict.fromkeys((*fields, "augment.time_mask", "augment.shift"), rates), "base": TINY}
    with pytest.raises(ConfigError, match="35,831,808 settings"):
        sweep_spec.build(values)
    tpe = sweep_spec.build({**values, "sampler": "tpe", "trials": 4, "seeds": [0]})
    checked = list(sweep_plan.to_check(tpe))
    assert len(checked) == 1 + 7 * 11 and {setting["training.lr"] for setting in checked} == set(rates)
    assert sweep_plan.plan(tpe, workspace).run_count == 4
    assert len(settings_of({**values, "sampler": "random", "trials": 5, "seeds": [0]}, workspace)) == 5


@pytest.mark.parametrize("high", [1e300, 2000])
def test_the_ends_of_a_range_are_values_of_the_field(workspace, high):
    axes = {"lora.r": {"low": 4, "high": high}}
    with pytest.raises(ConfigError, match=r"lora\.r must be at most 1,024"):
        settings_of({**SMALL, "axes": axes}, workspace)


def test_a_run_that_could_not_be_read_is_never_planned(workspace):
    axes = {"data": ["micro", "a\udcffb"]}
    found = sweep_plan.plan(sweep_spec.build({"axes": axes, "seeds": [0]}), workspace)
    assert [run.setting for run in found.runs] == [{"data.dataset": "micro"}] and len(found.problems) == 1
    config = found.runs[0].config
    named = sweep_plan.replicates(found.spec, 0, {"data.dataset": "left\u202eright"}, config)
    assert named[0].config.name == r"left\u202eright"
    with pytest.raises(ConfigError, match="must be at most 2,147,483,647"):
        sweep_plan.with_seed(config, 3_000_000_000)


def test_runs_that_were_trained_before_are_named_in_the_plan(store):
    made = started(store, **GRID)
    trainers = Trainers(store, lambda config: 0.5)
    first = trainers.claim()
    trainers.end(first)
    notes = sweep_plan.plan(sweep_spec.build(GRID), store.workspace).notes
    assert any("1 of 8 runs has already been trained here" in note and first.id in note for note in notes), made


@pytest.mark.parametrize("sampler", ["tpe", "asha"])
def test_a_sweep_that_learns_trains_each_setting_once_and_ends_when_there_are_no_others(store, sampler):
    axes = {"model": ["ast-mini"], "lora.method": ["lora", "ia3"], "lora.r": [4, 8, 16]}
    values = {"axes": axes, "sampler": sampler, "trials": 12, "seeds": [0], "base": ONE_EPOCH}
    planned = sweep_plan.plan(sweep_spec.build(values), store.workspace)
    assert planned.run_count == 4 and any("there are only 4 different settings" in note for note in planned.notes)
    made = started(store, **values)
    over = Trainers(store, lambda config: 0.1 * config.lora.r / 16).play(made.id)
    settings = [(run.config.lora.method, run.config.lora.r) for run in store.sweeps.runs(made.id)]
    assert {("lora", 4), ("lora", 8), ("lora", 16)} < set(settings) and len(settings) == 4
    assert over.status is SweepStatus.FINISHED and "4 different ones" in over.reason


def test_a_sweep_that_learns_samples_what_it_asked_for_where_repeats_are_likely(store):
    axes = {"lora.r": {"low": 1, "high": 6}}
    made = started(store, axes=axes, sampler="tpe", trials=6, seeds=[0], base=ONE_EPOCH)
    over = Trainers(store, lambda config: config.lora.r / 10).play(made.id)
    assert sorted(run.config.lora.r for run in store.sweeps.runs(made.id)) == [1, 2, 3, 4, 5, 6] and not over.reason
    with pytest.raises(PreflightError, match="There are no other settings: these axes have 6"):
        sweep_orders.add_trials(store, over, 1, created_by="test")


def deleted(store, made, keep):
    """Stop the sweep and delete the runs for which keep(run) is false."""
    sweep_orders.stop(store, made.id)
    gone = [run.id for run in store.sweeps.runs(made.id) if not keep(run)]
    store.marks.delete(gone)
    return store.sweeps.get(made.id)


def test_deleted_settings_do_not_come_back_with_more_values_or_seeds(store):
    made = started(store, **GRID)
    found = deleted(store, made, lambda run: run.trial < 3)
    queued = sweep_orders.extend(store, found, "targets", ["q_proj"], created_by="test")
    assert queued.settings == ("ast-mini · q_proj", "beats-mini · q_proj") and len(queued) == 4
    assert queued.sentence == "4 runs queued: ast-mini · q_proj, beats-mini · q_proj."
    assert [store.runs.get(run_id).trial for run_id in queued] == [4, 4, 5, 5]
    queued = sweep_orders.add_seeds(store, store.sweeps.get(made.id), [7], created_by="test")
    assert len(queued) == 5 and "beats-mini · default" not in queued.settings
    assert queued.notes == ("1 setting has no runs (never queued, or deleted): left out.",)


def test_a_value_that_gives_no_new_run_queues_nothing_and_says_why(store):
    made = started(store, axes={"lora.method": ["ia3"], "lora.r": [4]}, seeds=[0], base=TINY)
    queued = sweep_orders.extend(store, made, "lora.r", [8], created_by="test")
    assert (len(queued), queued.sentence) == (0, "No run was queued.") and "does not read lora.r" in queued.notes[0]
    found = deleted(store, store.sweeps.get(made.id), lambda run: False)
    assert len(sweep_orders.extend(store, found, "lora.r", [16], created_by="test")) == 0, "it was deleted"


def test_trials_of_a_random_sweep_that_were_deleted_are_not_drawn_again(store):
    made = started(store, **RATES | {"sampler": "random"})
    rates = {run.config.training.lr for run in store.sweeps.runs(made.id)}
    found = deleted(store, made, lambda run: run.trial in (0, 2))
    queued = sweep_orders.add_trials(store, found, 3, created_by="test")
    more = [store.runs.get(run_id) for run_id in queued]
    assert [run.trial for run in more] == [6, 7, 8] and not rates & {run.config.training.lr for run in more}


def test_a_deleted_trial_of_a_sweep_that_learns_is_not_queued_again(store):
    made = started(store, **BY_TPE | {"trials": 3})
    sweep_learner.step(store, made, 2)
    gone = {run.config.training.lr for run in store.sweeps.runs(made.id)}
    found = deleted(store, made, lambda run: False)
    sweep_orders.add_trials(store, found, 1, created_by="test")
    over = Trainers(store, by_rate).play(made.id)
    runs = store.sweeps.runs(made.id)
    assert over.status is SweepStatus.FINISHED and len(runs) == 2
    assert not gone & {run.config.training.lr for run in runs}


# Names


def test_a_sweep_is_found_by_id_name_and_last(store):
    with pytest.raises(UnknownNameError, match="There are no sweeps yet"):
        store.sweeps.find("last")
    first = started(store, **GRID, name="first")
    second = started(store, **GRID, name="second")
    assert store.sweeps.find("last").id == second.id and store.sweeps.find("first").id == first.id
    assert store.sweeps.find(first.id[-4:]).id == first.id
    with pytest.raises(UnknownNameError, match=r"Nearest: .*second"):
        store.sweeps.find("secund")


@pytest.mark.parametrize("sampler", ["tpe", "asha"])
@pytest.mark.parametrize("told", [True, False], ids=["after its trial was told", "before"])
def test_a_resumed_run_stays_the_run_of_its_trial_and_the_sweep_ends(store, sampler, told):
    made = started(store, **RATES | {"sampler": sampler, "trials": 3})
    trainers = Trainers(store, by_rate)
    sweep_learner.step(store, made, 1)
    first = trainers.claim()
    trainers.epoch(first, 1)
    trainers.end(first, RunStatus.STOPPED, "Stopped by hand.")
    if told:
        sweep_learner.step(store, made, 1)
    store.runs.resume(first.id, "Resumed.")
    assert trainers.play(made.id).status is SweepStatus.FINISHED
    runs = store.sweeps.runs(made.id)
    assert [run.trial for run in runs] == [0, 1, 2] and runs[0].id == first.id
    assert all(run.status is RunStatus.FINISHED or run.is_pruned for run in runs)
