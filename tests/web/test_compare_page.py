"""The Compare page as a visitor uses it, without a browser."""

import json
import shutil

import numpy as np
import pytest
from seeding import Training, config, seed_sweep
from visiting import chart, checked, words

from sousa_engine.analysis import baselines
from sousa_engine.core.config import DataConfig
from sousa_engine.data import rhythm
from sousa_engine.data.manifest import open_dataset
from sousa_engine.workspace import PROJECT_ROOT, Workspace


def section(app, name):
    """Open a section of Compare."""
    app.session_state["compare_tabs"] = name
    return checked(app.run())


def alts(app):
    """What the charts are, each once: some are drawn for a desk and for a phone."""
    return list(dict.fromkeys(element.proto.alt for element in app.get("plotly_chart")))


def test_compare_reads_the_runs_from_the_address(visit_week, week):
    chosen = [week[1]["finished"].id, week[1]["attention"].id]
    app = visit_week("compare", run=chosen)
    said = words(app)
    assert "One seed each: no conclusion about the settings." in said
    assert "On the same 200 test clips" in said
    (results,) = (frame.value for frame in app.dataframe)
    assert results["n test"].tolist() == [200, 200] and results["95 % interval (test)"].str.endswith("%").all()
    assert alts(app) == ["valid/accuracy over step"], "other sections wait until they are opened"


def outcomes(app):
    """The results table; the tables of the verdict come before it."""
    return next(frame.value for frame in app.dataframe if {"Runs", "Status"} & set(frame.value.columns))


def test_differences_are_shown_against_a_base_that_can_be_chosen(visit_week, week):
    runs = week[1]["finished"], week[1]["attention"], week[1]["rank 16"]
    app = section(visit_week("compare", run=[run.id for run in runs]), "What differs")
    table = app.dataframe[-1].value
    assert {"lora.targets", "lora.target_set", "lora.r", "lora.alpha"} == set(table.index[2:])
    assert table.columns[0].endswith("(base)") and "(" not in table.iloc[0, 0]
    assert table.loc["lora.r"].tolist() == ["8", "8", "16"]
    assert table.loc["Test accuracy"].iloc[1].endswith(")"), "the difference from the base is shown next to it"
    app.selectbox(key="compare_base").set_value(2)
    table = checked(app.run()).dataframe[-1].value
    assert table.columns[2] == "rank 16 (base)"
    assert "rank 16" not in next(m.value for m in app.markdown if "lora.r 8, not 16" in str(m.value)).split(":")[0]


def test_seeds_of_a_setting_are_one_row_one_band_and_one_matrix(visit_week, week):
    seeds = [week[1][name].id for name in ("finished", "seed 2", "seed 3")]
    app = visit_week("compare", run=[*seeds, week[1]["rank 16"].id])
    table = outcomes(app)
    assert table["Runs"].tolist() == ["3 finished", "1 finished"] and table["n test"].tolist() == [200, 200]
    assert (table["Lowest"] <= table["Test accuracy"]).all() and (table["Test accuracy"] <= table["Highest"]).all()
    assert "Band: from the lowest to the highest seed" in words(app)
    app.toggle(key="compare_each_run").set_value(True)
    assert "Band" not in words(checked(app.run()))
    for axis in ("epoch", "minutes"):
        app.session_state["compare_axis"] = axis
        assert alts(checked(app.run())) == [f"valid/accuracy over {axis}"] and "Left out" not in words(app)
    app = section(app, "Confusion")
    assert "3 seeds combined" in words(app) and "Rudiment groups are kept together" in words(app)
    assert len(app.get("plotly_chart")) == 3, "two matrices and their difference"
    app.session_state["compare_unit"] = "Runs"
    assert len(outcomes(checked(app.run()))) == 4


def test_runs_of_few_settings_have_no_axes_to_weigh(visit_week, week):
    app = visit_week("compare", run=[week[1]["finished"].id, week[1]["attention"].id])
    assert "What matters" not in [tab.label for tab in app.tabs]


def test_scores_name_the_rudiment_groups_the_twins_and_slices_with_their_n(visit_week, week):
    app = section(visit_week("compare", run=[week[1]["finished"].id, week[1]["rank 16"].id]), "Scores")
    table = app.dataframe[-1].value
    assert table.columns.tolist() == [
        "Setting", "all clips · n 200", "roll · n 75", "diddle · n 20", "flam · n 55", "drag · n 50",
        "acoustic twins · n 55", "without a twin · n 145",
    ]  # fmt: skip
    app.session_state["compare_parts"] = "Player"
    table = checked(app.run()).dataframe[-1].value
    counts = [int(column.rsplit(" ", 1)[1]) for column in table.columns[1:]]
    assert sum(counts) == 200 and [c.split(" ·")[0] for c in table.columns[1:]] == [
        "advanced", "intermediate", "beginner",
    ]  # fmt: skip
    app.session_state["compare_parts"] = "Classes"
    assert len(checked(app.run()).dataframe[-1].value.columns) == 41


def test_cost_names_the_control_and_the_measure_without_figures(visit_week, week):
    app = section(visit_week("compare", run=[week[1]["finished"].id, week[1]["random"].id]), "Cost")
    assert "Random weights are a control" in words(app) and "n = 200 test clips" in words(app)
    for measure in ("train_s", "peak_memory_mib"):
        app.session_state["compare_cost"] = measure
        assert alts(checked(app.run())) == ["Accuracy against cost"]


def test_compare_names_the_winner_of_several_seeds_and_shows_every_pair(visit, workspace):
    runs = []
    for r, reach in ((8, 0.35), (16, 0.7)):
        for number in range(3):
            training = Training.begin(workspace, config(seed=number, r=r, name="mine", max_epochs=1), reach=reach)
            runs.append(training.finish().id)
    app = visit("compare", run=runs)
    assert "**r=16 beats r=8 on the same 200 clips" in words(app)
    settings, pairs = (frame.value for frame in app.expander[0].dataframe)
    assert settings["Setting"].tolist() == ["r=16", "r=8"]
    assert settings["Seeds"].tolist() == [3, 3] and settings["n test"].tolist() == [200, 200]
    assert pairs["Outcome"].tolist() == ["A beats B"] and pairs["Seeds"].tolist() == ["3, 3"]
    assert 0 < pairs["p (Holm)"][0] < 0.05


def test_many_seeds_of_one_setting_are_one_row_or_a_row_each(visit, workspace):
    runs = [Training.begin(workspace, config(seed=number, max_epochs=1), reach=0.5).finish().id for number in range(9)]
    app = visit("compare", run=runs)
    assert "One setting, 9 seeds" in words(app)
    assert outcomes(app)["Runs"].tolist() == ["9 finished"]
    app.session_state["compare_unit"] = "Runs"
    assert len(outcomes(checked(app.run()))) == 9
    assert len(section(app, "Confusion").get("plotly_chart")) == 1, "nine seeds combined"


def test_compare_writes_the_picked_runs_into_the_address(visit_week, week):
    app = visit_week("compare")
    assert "Choose two or more runs" in words(app)
    chosen = [week[1]["finished"].id, week[1]["seed 2"].id, week[1]["seed 3"].id]
    app.multiselect(key="compare_choice").set_value(chosen)
    app = checked(app.run())
    assert app.query_params["run"] == chosen
    assert "variation between seeds" in words(app)
    app = checked(app.run())
    assert app.multiselect(key="compare_choice").value == chosen


def test_compare_follows_a_live_run_with_the_live_chart(visit_week, week):
    app = visit_week("compare", run=[week[1]["finished"].id, week[1]["running"].id])
    assert "has no test result" in words(app)
    assert [run["status"] for run in chart(app)["runs"]] == ["finished", "running"]
    app.selectbox(key="compare_metric").set_value("train/loss")
    assert chart(checked(app.run()))["panels"][0]["metrics"] == ["train/loss"]


def test_metrics_of_single_modules_are_not_offered_on_compare(visit_week, week):
    app = visit_week("compare", run=[week[1]["finished"].id, week[1]["seed 2"].id])
    offered = app.selectbox(key="compare_metric").options
    assert "valid/accuracy" in offered and not [name for name in offered if name.startswith("update/")]


def test_compare_calls_random_weights_a_control(visit_week, week):
    app = visit_week("compare", run=[week[1]["finished"].id, week[1]["random"].id])
    assert "control" in words(app)
    assert "random weights" in outcomes(app)["Weights"].tolist()


def test_compare_says_when_an_address_names_a_run_that_is_gone(visit_week, week):
    app = visit_week("compare", run=[week[1]["finished"].id, "gone"])
    assert "No run has the id gone" in words(app)


def test_compare_with_fewer_than_two_runs_invites_to_launch(visit):
    assert "You need two runs to compare" in words(visit("compare"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A workspace with a sweep of nine settings and two seeds, the last setting pruned."""
    workspace = Workspace(root=tmp_path_factory.mktemp("swept"))
    return workspace, seed_sweep(workspace, pruned=1)


def test_a_sweep_is_compared_by_its_address(swept, monkeypatch, visit):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(swept[0].root))
    app = visit("compare", sweep=swept[1])
    said = words(app)
    assert "rank and rate: 9 settings, 18 runs (16 finished, 2 pruned)." in said
    assert "cover the 8 settings with the best mean valid accuracy. 1 other setting appears only in the tables" in said
    assert len(outcomes(app)) == 9
    curves = app.get("plotly_chart")[0].proto.spec
    assert curves.count('"fill":"toself"') == 8, "a band a setting that is shown"
    app = section(app, "What matters")
    said = words(app)
    assert "8 of 9 settings have a finished run" in said and "Left out: 1 pruned." in said
    assert "Functional ANOVA of 8 settings, averaged over seeds" in said
    assert alts(app) == [
        "Settings as lines through their values", "Importance of the axes", "valid accuracy over r",
        "valid accuracy over lr",
    ]  # fmt: skip
    app.session_state["compare_axes_split"] = "test"
    assert "test accuracy over lr" in alts(checked(app.run()))
    app = section(app, "What differs")
    assert len(app.dataframe[-1].value) == 9, "many settings are rows"
    app = section(app, "Confusion")
    assert len(app.get("plotly_chart")) == 9, "eight matrices and the difference of two"
    assert "1 setting has no test result" in words(section(app, "Cost"))
    assert len(section(app, "Scores").dataframe[-1].value) == 8


def test_leaving_a_sweep_leads_back_to_single_runs_and_the_address_follows(swept, monkeypatch, visit):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(swept[0].root))
    app = visit("compare", sweep=swept[1])
    assert app.query_params["sweep"] == swept[1] and not app.multiselect
    app.selectbox(key="compare_sweep").set_value(None)
    app = checked(app.run())
    assert "sweep" not in app.query_params and app.multiselect(key="compare_choice").value == []
    app.selectbox(key="compare_sweep").set_value(swept[1])
    assert checked(app.run()).query_params["sweep"] == swept[1]


def test_a_sweep_that_is_not_there_is_said_and_runs_can_be_chosen(visit_week):
    app = visit_week("compare", sweep="nonsense")
    assert "No sweep has the id nonsense" in words(app) and app.multiselect


# Baselines of the compared runs


@pytest.fixture
def baselines_of_tiny(week, monkeypatch):
    """Baselines of the week's data set as `compute` keeps them, from a guesser that hears nothing. Gone afterwards."""
    from sklearn.dummy import DummyClassifier

    def guesser(seed):
        return DummyClassifier(strategy="stratified", random_state=seed)

    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", lambda C, **_: guesser(int(100 * C)))
    monkeypatch.setattr("sklearn.ensemble.ExtraTreesClassifier", lambda *_, **__: guesser(2))
    manifest, workspace = open_dataset(DataConfig(dataset="tiny")), week[0]
    folder = baselines.folder_of(manifest, workspace)
    folder.mkdir(parents=True)
    clips = len(baselines.choose_clips(manifest).clips)
    analysed = np.zeros((clips, rhythm.PATTERN + rhythm.POOLED), dtype=np.float32)
    analysed.tofile(folder / "figures.part")  # as of an attempt that was interrupted after its last clip
    found = baselines.compute(manifest, workspace)
    yield found
    shutil.rmtree(folder)


def links(app):
    return {element.proto.label for element in app.get("page_link")}


def figures(app):
    return [json.loads(element.proto.spec) for element in app.get("plotly_chart")]


def test_compare_offers_baselines_and_then_tells_them_as_a_line_and_in_charts(visit_week, week, request):
    chosen = [week[1]["finished"].id, week[1]["rank 16"].id]
    app = visit_week("compare", run=chosen)
    assert "Compute baselines" in links(app) and "majority class" not in words(app)
    verdict = words(app).split("**")[1]
    known = request.getfixturevalue("baselines_of_tiny")
    app = visit_week("compare", run=chosen)
    assert "Compute baselines" not in links(app)
    assert "Baselines on the same 200 clips: majority class 2.5 %, pooled log-mel " in words(app)
    assert words(app).split("**")[1] == verdict, "baselines are no part of the verdict"
    app = section(app, "Cost")
    assert "Dashed lines: baselines on the same clips" in words(app)
    best = max(known.baselines, key=lambda one: one.right)
    for figure in figures(app):
        drawn = [shape["y0"] for shape in figure["layout"]["shapes"]]
        assert best.accuracy.value in drawn and all(shape["line"]["dash"] for shape in figure["layout"]["shapes"])
    app = section(app, "Scores")
    dashes = next(trace for trace in figures(app)[0]["data"] if trace["name"] == best.short)
    assert dashes["customdata"][0].startswith("<b>all clips · n 200</b>")
    assert f"{100 * best.accuracy.value:.1f} % of 200 clips" in dashes["customdata"][0]


def test_baselines_of_other_clips_are_not_shown(visit_week, week, baselines_of_tiny):
    chosen = [week[1]["finished"].id, week[1]["rank 16"].id]
    facts = json.loads((baselines_of_tiny.folder / "result.json").read_text())
    (baselines_of_tiny.folder / "result.json").write_text(json.dumps(facts | {"test_key": "of others"}))
    clips = baselines_of_tiny.folder / f"{baselines.MAJORITY}.jsonl"
    clips.write_text("".join(clips.read_text().splitlines(keepends=True)[1:]))
    app = section(visit_week("compare", run=chosen), "Cost")
    assert "majority class" not in words(app) and "Dashed" not in words(app) and "Compute baselines" not in links(app)
    assert not any(figure["layout"].get("shapes") for figure in figures(app))


def test_choices_come_back_from_the_address_after_another_page(visit_week, week):
    chosen = [week[1]["finished"].id, week[1]["attention"].id]
    app = visit_week("compare", run=chosen)
    app.switch_page(str(PROJECT_ROOT / "pages" / "queue.py"))
    checked(app.run())
    app.query_params["run"] = chosen  # as Back does
    app.switch_page(str(PROJECT_ROOT / "pages" / "compare.py"))
    app = checked(app.run())
    assert app.multiselect(key="compare_choice").value == chosen
    assert outcomes(app)["n test"].tolist() == [200, 200]
