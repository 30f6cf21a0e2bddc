"""Settings: what differs between them, what matters, what they cost, and where on the test split they are good."""

import dataclasses

import pytest

from sousa_engine.analysis import cost, importance, rudiment_groups, scores, settings
from sousa_engine.analysis.sweeps import best_first
from sousa_engine.core.config import RunConfig
from sousa_engine.core.records import ClipScore, Run, RunStatus, Summary
from sousa_engine.core.rudiments import ACOUSTIC_TWINS, RUDIMENTS
from sousa_engine.data import synth

AXES = {"lora.r": 8, "training.lr": 2e-3}


def run(number, *, seed=0, trial=None, status=RunStatus.FINISHED, pruned=None, facts=None, weights="pretrained", **of):
    setting = {**AXES, **of}
    config = {
        "name": f"r {setting['lora.r']} · lr {setting['training.lr']:g}" if trial is not None else "",
        "lora": {"r": setting["lora.r"], "targets": [{"path": "q", "kind": "Linear", "shape": (192, 192)}]},
        "training": {"lr": setting["training.lr"]},
        "model": {"weights": weights},
        "seed": seed,
    }
    return Run(
        id=f"run{number}",
        config=RunConfig.model_validate(config),
        status=status,
        created_at_ms=number,
        started_at_ms=1_000,
        ended_at_ms=61_000,
        facts=facts or {},
        sweep_id=None if trial is None else "sweep",
        trial=trial,
        setting={} if trial is None else setting,
        pruned_at_step=pruned,
    )


def summaries(reached):
    """run id -> (best valid, test); None: not measured."""

    def summary(metric, value):
        return Summary(metric=metric, last=value, last_step=10, best=value, best_step=10, n=200)

    return {
        run_id: {
            metric: summary(metric, value)
            for metric, value in (("valid/accuracy", valid), ("test/accuracy", test))
            if value is not None
        }
        for run_id, (valid, test) in reached.items()
    }


def rows_of(*runs, reached=None):
    reached = reached or {}
    return settings.setting_rows(runs, summaries({r.id: reached.get(r.id, (0.5, 0.5)) for r in runs}))


# Settings


def test_seeds_of_a_setting_are_one_row_and_the_latest_of_a_seed_counts():
    rows = rows_of(run(1), run(2, seed=1), run(3, seed=1), run(4, **{"lora.r": 16}))
    assert [[r.id for r in row.runs] for row in rows] == [["run1", "run3"], ["run4"]]
    assert [row.setting for row in rows] == [{"lora.r": 8}, {"lora.r": 16}], "only what differs"
    assert [row.label for row in rows] == ["r=8", "r=16"]


def test_runs_of_one_sweep_keep_its_trials_and_its_names():
    runs = [run(1, trial=1), run(2, trial=0, **{"lora.r": 4}), run(3, trial=1, seed=1)]
    rows = rows_of(*runs)
    assert [(row.number, row.label, len(row.runs)) for row in rows] == [
        (0, "r 4 · lr 0.002", 1),
        (1, "r 8 · lr 0.002", 2),
    ]
    (axis,) = settings.setting_axes(rows)
    assert (axis.name, axis.values, axis.levels) == ("r", (4, 8), ("4", "8"))


def test_trials_that_train_the_same_are_one_setting_with_the_latest_of_each_seed():
    runs = [run(1, trial=0), run(2, trial=1, **{"lora.r": 4}), run(3, trial=2), run(4, trial=2, seed=1)]
    rows = rows_of(*runs)
    assert [(row.number, row.label, [of.id for of in row.runs]) for row in rows] == [
        (0, "r 8 · lr 0.002", ["run3", "run4"]),
        (1, "r 4 · lr 0.002", ["run2"]),
    ]


def test_names_that_are_alike_are_told_apart():
    first, second = run(1), run(2, **{"lora.r": 16})
    named = [dataclasses.replace(r, config=r.config.model_copy(update={"name": "same"})) for r in (first, second)]
    assert [row.label for row in rows_of(*named)] == ["r=8", "r=16"]
    swept = [run(1, trial=0), run(2, trial=1, weights="random")]
    assert [row.label for row in rows_of(*swept)] == ["r 8 · lr 0.002 · setting 0", "r 8 · lr 0.002 · setting 1"]


def test_the_best_are_chosen_by_valid_accuracy_never_by_test():
    runs = [run(i, trial=i, **{"lora.r": i + 1}) for i in range(4)]
    reached = {"run0": (0.1, 0.9), "run1": (0.8, 0.1), "run2": (0.7, 0.2), "run3": (None, None)}
    rows = rows_of(*runs, reached=reached)
    assert [row.number for row in settings.best(rows, 2)] == [1, 2]
    assert settings.best(rows, 4) == rows, "few enough keep their order"
    assert [row.number for row in best_first(rows)] == [1, 2, 0, 3]


def test_only_finished_seeds_count_and_a_pruned_setting_does_not():
    runs = [
        run(1, trial=0),
        run(2, trial=0, seed=1, status=RunStatus.FAILED),
        run(3, trial=1, status=RunStatus.STOPPED, pruned=40, **{"lora.r": 4}),
        run(4, trial=1, seed=1, **{"lora.r": 4}),
    ]
    found = summaries({"run1": (0.6, 0.5), "run2": (0.1, None), "run3": (0.2, None), "run4": (0.7, 0.7)})
    rows = settings.setting_rows(runs, found)
    assert [settings.reached(row, found, "valid") for row in rows] == [(0.6,), ()]
    assert settings.reached(rows[0], found, "test") == (0.5,)


def test_numbers_over_magnitudes_are_logarithmic_and_values_of_other_kinds_are_names():
    def axis(*values):
        return settings.SettingAxis(field="training.lr", values=values)

    assert axis(1e-3, 1e-2).is_log and not axis(4, 8).is_log and not axis(0, 100).is_log
    assert not axis("core", "default").is_number and axis("b", "a", "b").levels == ("b", "a")
    assert not axis(True, False).is_number
    assert axis(16, 4, 16).levels == ("4", "16")


def test_fields_equal_to_the_base_are_marked_and_leads_are_against_it():
    rows = rows_of(run(1), run(2, **{"lora.r": 16}), run(3, **{"training.lr": 1e-3}), reached={"run2": (0.5, 0.62)})
    found = settings.against_base(rows, 0)
    assert found.fields == ("lora.r", "training.lr")
    assert found.texts == (("8", "0.002"), ("16", "0.002"), ("8", "0.001"))
    assert found.is_base == ((True, True), (False, True), (True, False))
    assert settings.lead(rows[1], rows[0], "test") == pytest.approx(0.12)
    late = rows_of(run(1), run(2, **{"lora.r": 16}), reached={"run2": (0.5, None)})
    assert settings.lead(late[1], late[0], "test") is None


# Importance


def grid(effect, *, ranks=(4, 8, 16), rates=(1e-4, 1e-3, 1e-2), seeds=2):
    pairs = [(r, lr) for r in ranks for lr in rates]
    axes = (
        settings.SettingAxis(field="lora.r", values=tuple(r for r, _ in pairs)),
        settings.SettingAxis(field="training.lr", values=tuple(lr for _, lr in pairs)),
    )
    return axes, [tuple(effect(r, lr) + 0.001 * (-1) ** s for s in range(seeds)) for r, lr in pairs]


def test_the_axis_that_makes_the_difference_explains_most_of_it():
    axes, reached = grid(lambda r, lr: 0.5 + 0.1 * (lr == 1e-3) + 0.01 * (r == 16))
    found = importance.importance(axes, reached)
    assert [field for field, _ in found.shares] == ["training.lr", "lora.r"]
    assert found.shares[0][1] > 0.8 and 0 <= found.rest < 0.2
    assert (found.settings, found.left_out) == (9, 0)
    assert found.noise == pytest.approx(0.001) and found.between > 0.04
    assert importance.importance(axes, reached) == found, "the forest has a seed"


def test_drawn_numbers_are_weighed_by_the_length_of_their_range():
    rates = tuple(10 ** (-4 + 2 * i / 15) for i in range(16))
    axes, reached = grid(lambda r, lr: 0.5 + 0.1 * (lr > 1e-3), ranks=(8, 16), rates=rates, seeds=1)
    found = importance.importance(axes, reached)
    assert found.shares[0][0] == "training.lr" and found.shares[0][1] > 0.8
    assert found.noise is None, "one seed each says nothing of luck"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda reached: [*reached[:7], (), ()], "needs 8 settings with a finished run; there are 7"),
        (lambda reached: [(0.5,)] * 9, "same accuracy"),
    ],
)
def test_where_importance_would_mislead_there_is_a_reason_instead(change, reason):
    axes, reached = grid(lambda r, lr: 0.5 + lr)
    found = importance.importance(axes, change(reached))
    assert found.shares == () and reason in found.reason


def test_an_axis_that_only_failed_settings_varied_is_no_axis():
    axes, reached = grid(lambda r, lr: 0.5 + r / 100, ranks=(4, 8, 16, 32), rates=(1e-3, 1e-2, 1.0))
    reached = [values if lr < 1.0 else () for values, lr in zip(reached, axes[1].values, strict=True)]
    found = importance.importance(axes, reached)
    assert {field for field, _ in found.shares} == {"lora.r", "training.lr"} and found.left_out == 4
    alone = [values if lr == 1e-3 else () for values, lr in zip(reached, axes[1].values, strict=True)]
    assert "needs 8 settings" in importance.importance(axes, alone).reason


# Cost


def costly(number, trainable, **more):
    facts = {"parameters": {"trainable": trainable}, "train_s": 60.0}
    return run(number, trial=number, facts=facts, **{"lora.r": 1 + number}, **more)


def test_the_frontier_holds_what_nothing_cheaper_reaches():
    runs = [costly(0, 1000), costly(1, 2000), costly(2, 3000), costly(3, 500, weights="random"), run(4, trial=4)]
    reached = {"run0": (0.5, 0.5), "run1": (0.5, 0.4), "run2": (0.5, 0.6), "run3": (0.5, 0.9)}
    points = cost.cost_points(rows_of(*runs, reached=reached), "trainable")
    assert [point.cost for point in points] == [500, 1000, 2000, 3000], "cheapest first; without the figure, none"
    assert [point.on_frontier for point in points] == [False, True, False, True]
    assert points[0].is_control, "a control is never on the frontier, however good"
    assert points[1].score.n == 200 and points[1].score.low < 0.5 < points[1].score.high


def test_costs_are_means_over_finished_seeds_and_devices_are_named():
    def seed(number, train_s, device, status=RunStatus.FINISHED):
        facts = {"train_s": train_s, "device": device}
        return run(number, trial=0, seed=number, facts=facts, status=status)

    runs = [seed(0, 10.0, "cpu"), seed(1, 30.0, "cuda:0"), seed(2, 999.0, "mps", RunStatus.STOPPED)]
    rows = rows_of(*runs)
    (point,) = cost.cost_points(rows, "train_s")
    assert point.cost == 20.0 and point.score.seeds == 2
    assert cost.devices(rows) == ("cpu", "cuda:0")
    assert cost.cost_points(rows, "peak_memory_mib") == ()


# Parts of the test split


def clip(number, label, right, runs=2):
    return ClipScore(f"c{number}", label, right, runs)


def test_rudiment_groups_and_twins_are_named():
    assert rudiment_groups.groups() == ("roll", "diddle", "flam", "drag", "acoustic twins", "without a twin")
    assert rudiment_groups.groups_of("flam-tap") == rudiment_groups.groups_of("flam_tap") == ("flam", "acoustic twins")
    assert rudiment_groups.groups_of("single-drag-tap") == ("drag", "without a twin")
    assert rudiment_groups.groups_of("dog-bark") == ()
    twins = {slug for group in ACOUSTIC_TWINS for slug in group}
    assert {r.slug for r in RUDIMENTS if rudiment_groups.TWINS in rudiment_groups.groups_of(r.slug)} == twins


def test_rudiment_groups_are_kept_together_in_the_order_of_the_sheet():
    names = rudiment_groups.by_group(["zebra", "flam-tap", "single-paradiddle", "single-stroke-roll", "flam"])
    assert names == ("single-stroke-roll", "single-paradiddle", "flam", "flam-tap", "zebra")
    assert rudiment_groups.blocks(names) == (("roll", 1), ("diddle", 1), ("flam", 2), ("other", 1))
    assert rudiment_groups.blocks(("cat", "dog")) == () == rudiment_groups.blocks(("flam", "flam-tap"))
    assert rudiment_groups.blocks(rudiment_groups.by_group(r.slug for r in RUDIMENTS)) == (
        ("roll", 15), ("diddle", 4), ("flam", 11), ("drag", 10),
    )  # fmt: skip


def test_scores_are_means_over_seeds_with_the_clips_as_n():
    found = scores.group_scores([clip(0, "flam-tap", 2), clip(1, "flam", 1), clip(2, "single-drag-tap", 0)])
    assert list(found) == ["all clips", "flam", "drag", "acoustic twins", "without a twin"]
    assert found["all clips"].value == 0.5 and (found["all clips"].n, found["all clips"].seeds) == (3, 2)
    assert found["flam"].value == 0.75 and found["flam"].n == 2
    assert found["drag"].value == 0 == found["drag"].low < found["drag"].high
    assert all(score.low <= score.value <= score.high for score in found.values())
    assert list(scores.class_scores([clip(0, "flam", 1), clip(1, "single-stroke-roll", 1)])) == [
        "single-stroke-roll",
        "flam",
    ]


def test_classes_that_are_not_rudiments_have_no_group():
    assert list(scores.group_scores([clip(0, "dog", 1), clip(1, "cat", 1)])) == ["all clips"]
    assert scores.group_scores([]) == {}


def test_slices_of_an_embedded_set_know_every_test_clip():
    plans = {plan.clip_id: plan for plan in synth.plan(synth.PRESETS["micro"]) if plan.split == "test"}
    kinds = {kind.name: kind for kind in scores.slicings("micro", None)}
    assert set(kinds) == {"Tempo", "Tempo of the rudiment", "Player", "Noise", "Room"}
    for kind in kinds.values():
        assert kind.bin_of.keys() == plans.keys() and set(kind.bin_of.values()) <= set(kind.bins)
    slowest, fastest = (pick(plans.values(), key=lambda plan: plan.tempo_bpm) for pick in (min, max))
    assert kinds["Tempo"].bin_of[slowest.clip_id] == kinds["Tempo"].bins[0]
    assert kinds["Tempo"].bin_of[fastest.clip_id] == kinds["Tempo"].bins[-1]
    assert all(kinds["Player"].bin_of[i] == plan.tier for i, plan in plans.items())
    assert all(kinds["Noise"].bin_of[i] == f"{plan.snr_db:g} dB SNR" for i, plan in plans.items())
    clips = [ClipScore(i, plan.label, 1, 1) for i, plan in plans.items()]
    found = scores.slice_scores([*clips, clip(0, "unknown", 0)], kinds["Noise"])
    assert sum(score.n for score in found.values()) == len(plans)
    assert list(found) == [name for name in kinds["Noise"].bins if name in found]


def test_data_of_ones_own_has_no_slices(tmp_path):
    assert scores.slicings(str(tmp_path), None) == ()
