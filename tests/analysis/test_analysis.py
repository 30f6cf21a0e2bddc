import dataclasses
import math

import pytest

from sousa_engine.analysis import compare, confusion, curves, log, significance
from sousa_engine.core.config import LoraConfig, RunConfig, TargetModule
from sousa_engine.core.records import Curve, Prediction, Run, RunStatus, Summary


def predictions(pairs, split="test"):
    return [
        Prediction(clip_id=f"c{i}", split=split, label=a, predicted=b, probability=0.9, label_probability=0.1)
        for i, (a, b) in enumerate(pairs)
    ]


TARGETS = (TargetModule(path="q", kind="Linear", shape=(192, 192)),)


def run(seed=0, status=RunStatus.FINISHED, run_id=None, **config):
    lora = config.pop("lora", LoraConfig())
    if "targets" not in lora.model_fields_set:  # without targets, no setting of an adapter is read
        lora = LoraConfig.model_validate({**dict(lora), "targets": TARGETS})
    return Run(
        id=run_id or f"r{seed}",
        config=RunConfig(seed=seed, lora=lora, **config),
        status=status,
        created_at_ms=0,
        started_at_ms=1_000,
        ended_at_ms=61_000,
        facts={"parameters": {"trainable": 1000, "total": 2000}},
    )


def summary(metric, value, n=200, best=None, step=380):
    return Summary(metric=metric, last=value, last_step=step, best=best or value, best_step=step, n=n)


def rows(runs, accuracy):
    summaries = {
        r.id: {m: summary(m, a) for m in ("valid/accuracy", "test/accuracy", "test/macro_f1")}
        for r, a in zip(runs, accuracy, strict=True)
        if a is not None
    }
    return compare.results(runs, summaries)


# significance


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Source: values printed in Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_the_published_table(right, n, low, high):
    found = significance.wilson(right, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert found.value == right / n


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (3, 7), (143, 200), (480, 480)])
def test_wilson_interval_equals_scipy_s(right, n):
    from scipy.stats import binomtest  # by the process that runs this, not by each that collects it

    found = significance.wilson(right, n)
    assert (found.low, found.high) == pytest.approx(binomtest(right, n).proportion_ci(method="wilson"), abs=1e-12)


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_proportion_is_refused(right, n):
    with pytest.raises(ValueError, match="not a proportion"):
        significance.wilson(right, n)


def test_accuracy_without_clips_is_missing_not_zero():
    assert significance.last_accuracy(None) is None
    assert significance.last_accuracy(summary("test/accuracy", 0.5, n=None)) is None
    assert significance.last_accuracy(summary("test/accuracy", math.nan)) is None
    found = significance.last_accuracy(summary("test/accuracy", 0.715))
    assert found is not None and (found.right, found.n) == (143, 200)


def test_paired_interval_is_symmetric_and_counts_who_alone_was_right():
    first = predictions([("a", "a")] * 60 + [("a", "b")] * 40)
    second = predictions([("a", "a")] * 50 + [("a", "b")] * 10 + [("a", "a")] * 30 + [("a", "b")] * 10)
    there, back = significance.paired(first, second), significance.paired(second, first)
    assert there is not None and back is not None
    assert (there.only_first, there.only_second, there.difference) == (10, 30, 0.2)
    assert there.low == pytest.approx(-back.high) and there.high == pytest.approx(-back.low)
    assert there.low < there.difference < there.high and there.is_clear


def test_runs_on_other_clips_are_never_paired():
    assert significance.paired(predictions([("a", "a")] * 3), predictions([("a", "a")] * 4)) is None
    assert significance.paired(predictions([("a", "a")]), predictions([("b", "b")])) is None
    assert significance.paired([], []) is None


# confusion


def test_confusion_counts_every_clip_once_in_the_order_of_the_classes():
    found = confusion.confusion(predictions([("b", "a"), ("a", "a"), ("b", "b"), ("b", "a")]))
    assert found.classes == ("a", "b")
    assert found.counts == ((1, 0), (2, 1))
    assert (found.n, found.right) == (4, 2)


def test_class_never_predicted_keeps_its_row_and_column():
    found = confusion.confusion(predictions([("a", "a"), ("b", "a")]), classes=("a", "b", "c"))
    assert found.counts == ((1, 0, 0), (1, 0, 0), (0, 0, 0))
    weakest, strongest = confusion.class_results(found)
    assert (weakest.label, weakest.recall.value, weakest.taken_for, weakest.taken_for_count) == ("b", 0, "a", 1)
    assert (strongest.label, strongest.taken_for) == ("a", "")


def test_mistakes_are_listed_most_frequent_first():
    found = confusion.mistakes(confusion.confusion(predictions([("a", "b")] * 3 + [("b", "c")] * 5 + [("c", "c")])))
    assert [(m.label, m.predicted, m.count, m.n) for m in found] == [("b", "c", 5, 5), ("a", "b", 3, 3)]


def test_difference_of_two_counts_for_the_second_what_it_does_better():
    first = confusion.confusion(predictions([("a", "a"), ("a", "b"), ("b", "b"), ("b", "b")]), ("a", "b", "c"))
    second = confusion.confusion(predictions([("a", "a"), ("a", "a"), ("b", "c"), ("b", "b")]), ("a", "b", "c"))
    found = confusion.difference(first, second)
    assert found.gains == ((0.5, 0.5, None), (None, -0.5, -0.5), (None, None, None))
    worse, better = sorted(confusion.changes(found), key=lambda change: change.gain)
    assert (better.label, better.predicted, better.first, better.second) == ("a", "b", (1, 2), (0, 2))
    assert (worse.label, worse.predicted, worse.first, worse.second) == ("b", "c", (0, 2), (1, 2))
    with pytest.raises(ValueError, match="different classes"):
        confusion.difference(first, confusion.confusion(predictions([("a", "a")])))


def test_no_predictions_make_an_empty_matrix():
    found = confusion.confusion([])
    assert found.classes == () and found.n == 0


# curves


def test_smoothing_starts_unbiased_and_keeps_gaps():
    assert curves.smooth([4.0, None, 4.0], 0.9) == pytest.approx((4.0, None, 4.0))
    assert curves.smooth([1.0, 3.0], 0.0) == (1.0, 3.0)
    smoothed = curves.smooth([0.0] * 50 + [1.0], 0.5)
    assert smoothed[-1] == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(ValueError, match="smoothing"):
        curves.smooth([1.0], 1.0)


def curve(steps, mean, width=1):
    return Curve(metric="train/loss", width=width, steps=tuple(steps), mean=tuple(mean), low=(), high=())


def seed_curve(steps, mean, width=1):
    return curves.SeedCurve(curve=curve(steps, mean, width), x=tuple(steps))


def test_a_single_seed_is_a_line_of_bucket_means_without_a_band():
    found = curves.seed_line("a", [seed_curve((1, 3), (1.0, None), width=2)], group=2)
    assert found == curves.Line(label="a", x=(1, 3), y=(1.0, None), group=2)


def test_seeds_are_a_mean_with_a_band_from_the_lowest_to_the_highest():
    found = curves.seed_line("a", [seed_curve((1, 2, 3), (1.0, 2.0, 3.0)), seed_curve((1, 2), (3.0, None))])
    assert found.x == (1, 2, 3) and found.y == (2.0, 2.0, 3.0)
    assert (found.low, found.high) == ((1.0, 2.0, 3.0), (3.0, 2.0, 3.0)), (
        "a seed that ended, or has a gap, is passed over"
    )


def test_seeds_in_wider_and_narrower_buckets_meet_in_the_wider():
    found = curves.seed_line(
        "a", [seed_curve((2, 3, 4, 5), (1.0, 3.0, 5.0, 7.0)), seed_curve((2, 4), (4.0, 8.0), width=2)]
    )
    assert found.y == (3.0, 7.0) and (found.low, found.high) == ((2.0, 6.0), (4.0, 8.0))


def test_steps_lie_at_epochs_and_minutes_of_their_run():
    ran = dataclasses.replace(run(0), facts={"data": {"clips": {"train": 600}}})  # 38 steps an epoch at batch size 16
    found = curve((19, 38, 76), (0.1, 0.2, 0.3))
    assert curves.placed(ran, found, "epoch").x == (0.5, 1.0, 2.0)
    moments = {19: 31_000, 38: 61_000, 76: 121_000}
    assert curves.placed(ran, found, "minutes", moments).x == (0.5, 1.0, 2.0), "from its start, at 1 s"
    resumed = dataclasses.replace(ran, started_at_ms=901_000, facts={"earlier": [[1_000, 61_000]]})
    later = {step: moment if moment <= 61_000 else moment + 840_000 for step, moment in moments.items()}
    assert curves.placed(resumed, found, "minutes", later).x == (0.5, 1.0, 2.0), "a pause of 14 minutes does not count"
    assert curves.placed(ran, found, "minutes", {19: 31_000}) is None
    assert curves.placed(run(0), found, "epoch") is None, "a run that does not know its data has no epochs"


# compare


def targets(*paths):
    return tuple(TargetModule(path=p, kind="Linear", shape=(192, 192)) for p in paths)


def test_only_differing_settings_are_listed_readably():
    first = run(0, lora=LoraConfig(targets=targets("layers.0.attention.q_proj"), r=8), name="first")
    second = run(1, lora=LoraConfig(targets=targets("layers.0.attention.q_proj", "layers.1.attention.q_proj"), r=8))
    found = {d.field: d.values for d in compare.config_differences([first, second])}
    assert found == {
        "lora.targets": ("1 module: q_proj in layer 0", "2 modules: q_proj ×2 in layers 0 to 1"),
        "seed": ("0", "1"),
    }


def test_changes_from_defaults_name_both_values():
    found = compare.changes_from_defaults(RunConfig.model_validate({"training": {"lr": 5e-4}, "seed": 3}))
    assert {d.field: d.values for d in found} == {"training.lr": ("0.002", "0.0005"), "seed": ("0", "3")}


def test_result_carries_n_interval_and_seconds():
    (row,) = rows([run(0)], [0.6])
    assert row.test is not None and (row.test.right, row.test.n) == (120, 200)
    assert (row.seconds, row.trainable, row.best_step) == (60.0, 1000, 380)


def test_running_run_has_no_seconds_and_no_test_result():
    (row,) = rows([run(0, status=RunStatus.RUNNING)], [None])
    assert row.seconds is None and row.test is None and row.test_macro_f1 is None


def several(counts, **config):
    """(runs, their test accuracies, their predictions): one run a seed, right on the first so many of 200 clips."""
    runs = [run(s, run_id=f"{'-'.join(map(str, config)) or 'plain'}-{s}", **config) for s in range(len(counts))]
    told = {
        r.id: predictions([("a", "a")] * n + [("a", "b")] * (200 - n)) for r, n in zip(runs, counts, strict=True)
    }  # fmt: skip
    return runs, [n / 200 for n in counts], told


def compared(*settings, **more):
    runs = [r for runs, _, _ in settings for r in runs]
    accuracy = [a for _, accuracies, _ in settings for a in accuracies]
    told = {run_id: found for _, _, predicted in settings for run_id, found in predicted.items()}
    return compare.conclude(rows(runs, accuracy), told, names=compare.setting_names(runs), **more)


RANK_4 = {"lora": LoraConfig(r=4)}


def test_one_seed_each_is_no_conclusion_however_large_the_difference():
    found = compared(several([20]), several([198], **RANK_4))
    assert found.verdict == "One seed each: no conclusion about the settings."
    assert not found.pairs and "at least 3 seeds" in found.notes[-1]


def test_two_seeds_of_a_setting_are_too_few():
    found = compared(several([20, 20]), several([180, 180], **RANK_4))
    assert found.verdict.startswith("Not enough evidence: two seeds are too few;")


def test_settings_of_three_seeds_are_judged_by_what_differs_between_them():
    found = compared(several([100, 102, 104]), several([140, 141, 142], **RANK_4))
    assert found.verdict.startswith("r=4 beats r=8 on the same 200 clips: +19.5 points (95 % interval ")
    assert found.verdict.endswith("), 3 seeds.")
    assert [(pair.first, pair.second, pair.n_clips) for pair in found.pairs] == [("r=4", "r=8", 200)]
    assert [standing.name for standing in found.order] == ["r=4", "r=8"]


def test_runs_that_were_pruned_never_compete():
    winner, loser = several([140, 141, 142], **RANK_4), several([100, 102, 104])
    pruned = {r.id: "pruned after epoch 3" for r in winner[0]}
    found = compared(loser, winner, excluded=pruned)
    assert "variation between seeds" in found.verdict and "50.0 to 52.0 %" in found.verdict
    assert len(found.notes) == 3 and found.notes[0].endswith("seed 0 is excluded: pruned after epoch 3.")
    everything = compared(loser, winner, excluded=pruned | {r.id: "pruned" for r in loser[0]})
    assert everything.verdict == "No conclusion: fewer than two runs compete."


def test_runs_measured_on_other_clips_than_they_should_be_are_left_out_by_name():
    runs, accuracy, told = several([100, 102, 104])
    told[runs[2].id] = told[runs[2].id][:150]
    found = compared((runs, accuracy, told), several([140, 141, 142], **RANK_4))
    assert found.notes[0].endswith("seed 2 is excluded: its 150 test clips are not the 200 clips of the other runs.")
    assert (found.pairs[0].seeds_first, found.pairs[0].seeds_second) == (3, 2)


def test_settings_are_called_by_what_differs_between_them():
    paths = targets("layers.0.attention.q_proj")
    lora = LoraConfig(targets=paths, target_set="attention")

    def names(*runs):
        found = compare.setting_names(runs)
        return [found[row.setting] for row in rows(runs, [None] * len(runs))]

    assert names(run(0), run(1)) == ["ast-mini · tiny", "ast-mini · tiny"]
    assert names(run(0), run(1, training={"lr": 5e-4}), run(2)) == ["lr=0.002", "lr=0.0005", "lr=0.002"]
    assert names(run(0, lora=lora), run(0, lora=LoraConfig(targets=()), model={"weights": "random"})) == [
        "attention",
        "random weights · the head alone",
    ]
    assert names(run(0, lora=LoraConfig(method="dora")), run(3, device="cpu")) == ["DoRA", "LoRA"]
    assert names(run(0), run(0, model={"weights": "random"})) == ["pretrained", "random weights"]
    rank_4 = {"r": 4, "alpha": 8}
    assert names(run(0), run(0, lora=LoraConfig(**rank_4), training={"lr": 5e-4})) == [
        "r=8 · lr=0.002",
        "r=4 · lr=0.0005",
    ]


def test_settings_that_differ_in_too_much_are_called_by_title():
    much = {"batch_size": 8, "lr": 1e-3, "head_lr": 1e-3, "weight_decay": 0.02, "warmup": 0.2, "max_epochs": 3}
    runs = [run(0, run_id="x-1111"), run(0, run_id="x-2222", training=much), run(0, name="slow", training={"lr": 1e-5})]
    assert list(compare.setting_names(runs).values()) == ["ast-mini · tiny · 1111", "ast-mini · tiny · 2222", "slow"]


def test_same_setting_with_other_seeds_is_the_spread_between_seeds():
    found = compare.conclude(rows([run(0), run(1), run(2)], [0.5, 0.6, 0.55]))
    assert "variation between seeds" in found.verdict and "50.0 to 60.0 %" in found.verdict


def test_unfinished_runs_and_other_data_allow_no_conclusion():
    unfinished = compare.conclude(rows([run(0), run(1, name="late")], [0.5, None]))
    assert unfinished.verdict.startswith("No conclusion: late · seed 1 has no test result")
    two = compare.conclude(rows([run(0), run(1), run(2, name="late")], [0.5, 0.6, None]))
    assert "variation between seeds" in two.verdict
    assert two.notes[0].startswith("Excluded: late · seed 2 has no test")
    other = rows([run(0), run(1, data={"dataset": "small"})], [0.5, 0.6])
    assert "not tested on the same clips" in compare.conclude(other).verdict


def test_random_weights_beside_pretrained_are_called_a_control():
    found = compare.conclude(rows([run(0), run(1, model={"weights": "random"})], [0.5, 0.4]))
    assert any("control" in note for note in found.notes)


def test_paired_sentence_speaks_of_networks_not_settings():
    difference = significance.paired(
        predictions([("a", "b")] * 30 + [("a", "a")] * 70), predictions([("a", "a")] * 100)
    )
    assert difference is not None
    text = compare.paired_sentence("r=4", "r=8", difference)
    assert "100 test clips" in text and "+30.0 points for r=8" in text and "networks differ" in text


def test_records_of_analysis_are_frozen():
    (row,) = rows([run(0)], [0.6])
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.title = "x"


# log


def test_log_tail_is_read_from_the_end_without_control_sequences(tmp_path):
    path = tmp_path / "train.log"
    path.write_bytes(
        b"first\n\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07\n 1%|  \r50%|# \r100%|##\nbad \xff\x00\n"
    )
    assert log.tail(path) == ("first", "red link", "100%|##", "bad \ufffd")
    assert log.tail(path, lines=2) == ("100%|##", "bad \ufffd")


def test_log_tail_of_a_huge_file_starts_with_a_whole_line(tmp_path):
    path = tmp_path / "train.log"
    path.write_text("".join(f"line {i}\n" for i in range(100_000)))
    found = log.tail(path, lines=10_000, max_bytes=1000)
    assert found[-1] == "line 99999" and found[0].startswith("line 99")
    assert log.tail(tmp_path / "none.log") == ()
