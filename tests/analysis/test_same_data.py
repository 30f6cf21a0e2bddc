"""Runs have the same data if the sounds and labels are the same, wherever the files are; what differs is named."""

from __future__ import annotations

import dataclasses

import pytest

from sousa_engine.analysis import baselines, compare, same_data, settings, verdict
from sousa_engine.analysis.significance import paired
from sousa_engine.core.config import RunConfig
from sousa_engine.core.records import Prediction, Run, RunStatus, Summary

N = 40


def contents(test="t", train="a", valid="v", clip_s=2.0, **more):
    splits = {"train": [train, 120], "valid": [valid, 20], "test": [test, N]}
    return {"version": 1, "clip_s": clip_s, "all": train + valid + test, **splits} | more


def run(run_id, *, seed=0, r=8, dataset="/here/drums", of=None):
    config = {"seed": seed, "training": {"max_epochs": r}, "data": {"dataset": dataset}, "name": run_id}
    facts = {"data": {"contents": of}} if of else {}
    return Run(
        id=run_id, config=RunConfig.model_validate(config), status=RunStatus.FINISHED, created_at_ms=seed, facts=facts
    )


def answers(right, *, sounds="s", named="tap/{}.wav", changed=0):
    """N clips, the first `right` of them correct. sounds: "" for a run of an earlier version. changed: clips, from the
    first, with another sound than others of the same name have."""
    return tuple(
        Prediction(
            clip_id=named.format(i), split="test", label="tap", predicted="tap" if i < right else "roll",
            probability=0.9, label_probability=0.5, content=sounds and f"{'new' if i < changed else sounds}{i}",
        )
        for i in range(N)
    )  # fmt: skip


def concluded(runs, predictions):
    values = {
        one.id: {"test/accuracy": Summary(metric="test/accuracy", last=0.5, last_step=9, best=0.5, best_step=9, n=N)}
        for one in runs
    }
    return compare.conclude(compare.results(runs, values), predictions)


def test_a_copy_elsewhere_is_the_same_data_and_is_paired():
    runs, told = [], {}
    for dataset, r, right in (("/here/drums", 4, 20), ("/there/copy", 8, 30)):
        for seed in range(3):
            runs.append(run(f"r{r}-{seed}", seed=seed, r=r, dataset=dataset, of=contents()))
            told[runs[-1].id] = answers(right, named="tap/{}.wav" if r == 4 else "other/{}.flac")
    found = concluded(runs, told)
    assert found.verdict.startswith("r8-0 beats r4-0 on the same 40 clips: +25.0 points"), found.verdict
    assert not any("data" in note for note in found.notes)
    assert paired(told["r4-0"], told["r8-0"]).n == N
    assert compare.setting_fields(runs) == ("training.max_epochs",), "where the data are is no part of a setting"
    assert [len(row.runs) for row in settings.setting_rows(runs, {})] == [3, 3]
    copies = [run("first", seed=0, of=contents()), run("second", seed=1, dataset="/there/copy", of=contents())]
    assert len(settings.setting_rows(copies, {})) == 1


def test_replaced_sounds_under_the_same_names_are_named_and_never_paired():
    runs = [run("before", of=contents()), run("after", r=4, of=contents(test="other"))]
    told = {"before": answers(30), "after": answers(10, changed=6)}
    found = concluded(runs, told)
    assert found.verdict == (
        "No conclusion: the runs were not measured on the same clips. Between before · seed 0 and after · seed 0, the "
        "test split differs: 6 clips changed, 0 added, 0 missing."
    )
    assert paired(told["before"], told["after"]) is None
    groups = verdict.groups(
        [verdict.Measured(run=one.id, group=one.id, seed=0, predictions=told[one.id]) for one in runs]
    )
    assert [left.reason for left in groups.left_out] == ["6 of its test clips have other sounds than in other runs"]
    same_setting = [run("before", of=contents()), run("after", seed=1, of=contents(test="other"))]
    assert len(settings.setting_rows(same_setting, {})) == 2, "seeds on other data are no seeds of one setting"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (contents(test="x"), "the test split differs (40 clips, then 40)"),
        (contents(clip_s=4.0), "the clip length differs (2 s, then 4 s)"),
        (contents(test="x", version=2), "another version of this program"),
    ],
)
def test_without_a_list_of_clips_the_split_is_named_with_its_size(other, said):
    found = concluded([run("before", of=contents()), run("after", r=4, of=other)], {})
    assert found.verdict.startswith("No conclusion: the runs were not measured on the same clips.")
    assert said in found.verdict


def test_other_train_clips_are_told_beside_the_comparison_on_the_same_test_clips():
    runs = [run(f"r{r}-{s}", seed=s, r=r, of=contents(train=f"a{r}")) for r in (4, 8) for s in range(3)]
    found = concluded(runs, {one.id: answers(20 if one.config.training.max_epochs == 4 else 30) for one in runs})
    assert "beats" in found.verdict
    (note,) = found.notes
    assert "trained or chosen on different data" in note and "the train split differs (120 clips, then 120" in note


def test_runs_from_before_contents_were_recorded_are_compared_by_names_and_that_is_said():
    runs = [run(f"r{r}-{s}", seed=s, r=r, of=contents() if r == 8 else None) for r in (4, 8) for s in range(3)]
    told = {one.id: answers(20, sounds="") if one.config.training.max_epochs == 4 else answers(30) for one in runs}
    found = concluded(runs, told)
    assert "r8-0 beats r4-0 on the same 40 clips" in found.verdict
    (note,) = found.notes
    assert note.startswith("It is not known whether the sounds were the same for r4-0 · seed 0, r4-1")
    elsewhere = concluded([runs[0], run("x", r=2, dataset="/there/copy", of=contents())], {})
    assert "its contents are not known" in elsewhere.verdict and "It is not known" in elsewhere.notes[0]
    old_embedded = [run(f"e{r}", r=r, dataset="tiny") for r in (4, 8)]
    assert not any("not known" in note for note in concluded(old_embedded, {}).notes)


def test_seeds_from_before_and_after_the_upgrade_are_one_setting():
    rows = settings.setting_rows([run("old", seed=0), run("new", seed=1, of=contents())], {})
    assert [len(row.runs) for row in rows] == [2]


def test_what_is_no_contents_among_the_facts_counts_as_not_known():
    for broken in ("x", {}, {"clip_s": 2.0}, contents() | {"test": 3}, contents() | {"train": ["a", "b"]}):
        (data,) = same_data.of_runs([dataclasses.replace(run("odd"), facts={"data": {"contents": broken}})])
        assert not data.contents and not data.is_known


def test_equal_clips_of_a_split_are_counted_each_and_a_rename_is_no_change():
    twice = [dataclasses.replace(p, content="same") for p in answers(20)]
    assert len(same_data.keyed([twice])[0]) == N and paired(twice, twice[::-1]).n == N
    assert same_data.changed_clips(answers(1), answers(1, named="new/{}.wav")) == (0, 0, 0)
    assert same_data.changed_clips(answers(1), answers(1)[:-2]) == (0, 0, 2)
    assert same_data.changed_clips(answers(1), answers(1, sounds="")) is None
    assert baselines.test_key(answers(1)) == baselines.test_key(answers(2, named="new/{}.wav"))
    assert baselines.test_key(answers(1)) != baselines.test_key(answers(1, changed=1))
