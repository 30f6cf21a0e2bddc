"""Runs, Run and Compare as a visitor meets them, without a browser."""

import json

import pytest
from seeding import Training, config, seed
from streamlit.testing.v1 import AppTest

from sousa_engine import supervisor
from sousa_engine.records import RunStatus
from sousa_engine.store import Store
from sousa_engine.workspace import PROJECT_ROOT

PAGES = PROJECT_ROOT / "pages"


@pytest.fixture
def ensured():
    """The workspaces a page started a supervisor for; none really starts."""
    return []


@pytest.fixture
def visit(workspace, monkeypatch, ensured):
    """visit("runs"), visit("run", id=...): the page after its first run, without an exception."""
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    monkeypatch.setattr(supervisor, "ensure", ensured.append)

    def open_page(name, **query):
        app = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=60)
        app.run()
        for key, value in query.items():
            app.query_params[key] = value
        return checked(app.switch_page(str(PAGES / f"{name}.py")).run())

    return open_page


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    """A workspace with a week of work, shared by tests that only read it."""
    from sousa_engine.workspace import Workspace

    workspace = Workspace(root=tmp_path_factory.mktemp("week"))
    return workspace, seed(workspace)


@pytest.fixture
def visit_week(week, monkeypatch, visit):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(week[0].root))
    return visit


def checked(app):
    assert not app.exception, app.exception
    return app


def words(app) -> str:
    """Everything the page says, in one string."""
    elements = [*app.title, *app.subheader, *app.markdown, *app.caption, *app.info, *app.warning, *app.error]
    return "\n".join([*(str(e.value) for e in elements), *(str(c.value) for c in app.code)])


def chart(app):
    """What the live chart was given."""
    (component,) = app.get("bidi_component")
    return json.loads(component.proto.json)


# Runs


def test_empty_workspace_invites_to_launch(visit):
    app = visit("runs")
    assert "Nothing trained yet" in words(app)
    assert not app.dataframe


def test_every_run_is_listed_newest_first_with_its_n(visit_week, week):
    table = visit_week("runs").dataframe[0].value
    assert len(table) == len(week[1]) == 11
    assert table["status"].explode().tolist()[:3] == ["queued", "running", "finished"]
    finished = table[table["id"] == week[1]["finished"].id].iloc[0]
    assert finished["test_n"] == 200 and 50 < finished["test"] < 70 and finished["progress"] == 100
    running = table[table["id"] == week[1]["running"].id].iloc[0]
    assert running["progress"] == 50 and running["valid_n"] == 200


def test_random_weights_are_labelled_in_the_list(visit_week, week):
    table = visit_week("runs").dataframe[0].value
    labels = dict(zip(table["id"], table["weights"].explode(), strict=True))
    assert labels[week[1]["random"].id] == "random weights"
    assert labels[week[1]["finished"].id] == "pretrained"


def test_list_is_filtered_by_text_and_status(visit_week, week):
    app = visit_week("runs")
    app.text_input(key="q").set_value("ATTENTION only")
    table = checked(app.run()).dataframe[0].value
    assert table["id"].tolist() == [week[1]["attention"].id]
    app.text_input(key="q").set_value("")
    app.session_state["status"] = ["failed", "lost"]
    table = checked(app.run()).dataframe[0].value
    assert set(table["id"]) == {week[1]["failed"].id, week[1]["lost"].id}
    app.text_input(key="q").set_value("no such run")
    assert "No run matches" in words(checked(app.run()))


def select(app, *ids):
    """Tick these runs in the table."""
    rows = app.session_state["runs_rows"]
    app.session_state[table_key(app)] = {
        "selection": {"rows": [rows.index(i) for i in ids], "columns": [], "cells": []}
    }
    return checked(app.run())


def table_key(app):
    import hashlib

    return "runs-" + hashlib.sha1(" ".join(app.session_state["runs_rows"]).encode()).hexdigest()[:12]


def test_run_queued_elsewhere_is_noticed(visit, workspace):
    Training.begin(workspace, config(seed=1, max_epochs=1)).finish()
    app = visit("runs")
    with Store.open(workspace) as store:
        store.enqueue(config(seed=2))
    assert checked(app.run()).dataframe[0].value["status"].explode().tolist() == ["queued", "finished"]


def test_ticked_runs_open_compare_with_exactly_these_runs(visit_week, week):
    chosen = [week[1]["finished"].id, week[1]["rank 16"].id]
    app = visit_week("runs")
    assert app.button(key="compare_runs").disabled and app.button(key="open_run").disabled
    app = select(app, *chosen)
    assert app.button(key="open_run").disabled
    app = checked(app.button(key="compare_runs").click().run())
    assert sorted(app.query_params["run"]) == sorted(chosen)
    assert app.title[0].value == "Compare"


def test_one_ticked_run_opens_its_page(visit_week, week):
    app = select(visit_week("runs"), week[1]["attention"].id)
    app = checked(app.button(key="open_run").click().run())
    assert app.query_params["id"] == week[1]["attention"].id
    assert app.title[0].value == "attention only"


def test_new_run_never_moves_a_tick_to_another_run(visit, workspace):
    first = Training.begin(workspace, config(seed=1, max_epochs=1))
    first.finish()
    second = Training.begin(workspace, config(seed=2, max_epochs=1))
    second.finish()
    app = select(visit("runs"), first.run.id)
    with Store.open(workspace) as store:
        newest = store.enqueue(config(seed=3))
    app = checked(app.run())
    assert app.session_state["runs_rows"] == [second.run.id, first.run.id]
    assert "1 newer run will show" in words(app)
    app = select(app)
    assert app.session_state["runs_rows"] == [newest.id, second.run.id, first.run.id]


# Run


def test_unknown_id_offers_the_runs_there_are(visit_week, week):
    app = visit_week("run", id="nonsense")
    assert "No run has the id 'nonsense'" in words(app)
    app.selectbox(key="run_choice").set_value(week[1]["finished"].id)
    app = checked(app.run())
    assert app.query_params["id"] == week[1]["finished"].id
    assert app.title[0].value == week[1]["finished"].title


def test_finished_run_shows_results_with_n_and_interval(visit_week, week):
    app = visit_week("run", id=week[1]["finished"].id)
    said = words(app)
    metrics = {metric.label: metric.value for metric in app.metric}
    assert metrics["Test accuracy"].endswith(" %") and metrics["Trainable parameters"] == "118,696"
    assert "n = 200 · 95 % interval" in said and "most frequent class: 2.5 %" in said
    assert len(app.get("plotly_chart")) == 2
    assert chart(app)["runs"] == [
        {"id": week[1]["finished"].id, "label": week[1]["finished"].title, "status": "finished"}
    ]


def tab(app, name, run_id, first):
    app.session_state[f"tabs-{run_id}-{first}"] = name
    return checked(app.run())


def test_settings_tell_config_command_versions_and_targets(visit_week, week):
    run = week[1]["rank 16"]
    app = tab(visit_week("run", id=run.id), "Settings", run.id, "Results")
    said = words(app)
    assert "lora.r=16" in said and "python -m sousa_engine train" in said
    assert "max_epochs: 10" in said
    changed = app.dataframe[0].value.set_index("Field")
    assert changed.loc["lora.r", "This run"] == "16" and changed.loc["lora.r", "Default"] == "8"
    table = app.table[0].value.to_string()
    assert "transformers 5.23.0" in table and "q_proj ×4" in table and "layers 0 to 3" in table


def test_failed_run_shows_the_cause_the_step_and_the_last_lines(visit_week, week):
    app = visit_week("run", id=week[1]["failed"].id)
    said = words(app)
    assert "The loss became nan at step 120" in app.error[0].value
    assert not app.warning
    assert "sousa_engine.errors.RunError" in said and "\x1b" not in said
    assert app.get("button") and not [b for b in app.button if b.key == "stop"]


def test_divergence_that_the_reason_does_not_name_is_told_with_its_step(visit, workspace):
    training = Training.begin(workspace)
    training.steps(20, diverge_at=12)
    training.end(RunStatus.STOPPED, "Stopped at step 20.")
    app = visit("run", id=training.run.id)
    assert app.warning[0].value == "train/loss became no finite number at step 12."


def test_random_weights_are_labelled_on_the_page_of_the_run(visit_week, week):
    def badges(name):
        return "".join(str(m.value) for m in visit_week("run", id=week[1][name].id).markdown)

    assert "random weights" in badges("random") and "random weights" not in badges("finished")


def test_stop_button_asks_for_a_stop_and_says_what_happens(visit, workspace, ensured):
    training = Training.begin(workspace)
    training.steps(5)
    app = visit("run", id=training.run.id)
    app = checked(app.button(key="stop").click().run())
    with Store.open(workspace) as store:
        run = store.run(training.run.id)
    assert run is not None and run.status is RunStatus.STOPPING
    assert "checkpoint is saved first" in app.toast[0].value
    assert ensured == [workspace]
    assert app.button(key="stop").disabled and app.button(key="stop").label == "Stopping"


def test_queued_run_is_taken_out_of_the_queue(visit, workspace):
    with Store.open(workspace) as store:
        queued = store.enqueue(config())
    app = visit("run", id=queued.id)
    assert chart(app)["runs"][0]["status"] == "queued"
    app = checked(app.button(key="stop").click().run())
    with Store.open(workspace) as store:
        run = store.run(queued.id)
    assert run is not None and run.status is RunStatus.STOPPED
    assert "Taken out of the queue" in app.toast[0].value


def test_launch_again_hands_over_the_settings(visit_week, week):
    run = week[1]["rank 16"]
    app = visit_week("run", id=run.id)
    app = checked(app.button(key="again").click().run())
    assert app.title[0].value == "Launch"
    assert app.session_state["launch.lora.r"] == 16
    assert app.session_state["ticks"]["paths"] == [target.path for target in run.config.lora.targets]


def test_run_is_renamed_on_its_page(visit, workspace):
    training = Training.begin(workspace)
    app = visit("run", id=training.run.id)
    app.text_input(key=f"name-{training.run.id}").set_value("a better name")
    app = checked(app.run())
    app = checked(app.button(key="rename").click().run())
    assert app.title[0].value == "a better name"


def test_title_is_shown_as_it_was_written_never_as_markup(visit, workspace):
    from sousa_engine.web.parts import plain

    training = Training.begin(workspace, config(name="lr_5e-4 *best* :red[x] $a$ <b>"))
    app = visit("run", id=training.run.id)
    assert app.title[0].value == r"lr\_5e-4 \*best\* \:red\[x\] \$a\$ \<b\>" == plain(training.run.title)


# Compare


def test_compare_reads_the_runs_from_the_address(visit_week, week):
    chosen = [week[1]["finished"].id, week[1]["attention"].id]
    app = visit_week("compare", run=chosen)
    said = words(app)
    assert "One seed each: no conclusion about the settings." in said
    assert "On the same 200 test clips" in said
    results, differing = (frame.value for frame in app.dataframe)
    assert results["n test"].tolist() == [200, 200] and results["95 % of test"].str.endswith("%").all()
    assert {"lora.targets", "lora.target_set"} == set(differing["Field"])
    assert len(app.get("plotly_chart")) == 3


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


def test_compare_draws_the_first_eight_of_many_runs_and_judges_all(visit, workspace):
    runs = [Training.begin(workspace, config(seed=number, max_epochs=1), reach=0.5).finish().id for number in range(9)]
    app = visit("compare", run=runs)
    assert "One setting, 9 seeds" in words(app)
    assert len(app.dataframe[0].value) == 9
    assert "Curves and matrices: the first 8 of 9 runs." in words(app)
    assert len(app.get("plotly_chart")) == 1 + 8


def test_compare_writes_the_picked_runs_into_the_address(visit_week, week):
    app = visit_week("compare")
    assert "Choose two runs or more" in words(app)
    chosen = [week[1]["finished"].id, week[1]["seed 2"].id, week[1]["seed 3"].id]
    app.multiselect(key="compare_choice").set_value(chosen)
    app = checked(app.run())
    assert app.query_params["run"] == chosen
    assert "spread between seeds" in words(app)
    app = checked(app.run())
    assert app.multiselect(key="compare_choice").value == chosen


def test_compare_follows_a_live_run_with_the_live_chart(visit_week, week):
    app = visit_week("compare", run=[week[1]["finished"].id, week[1]["running"].id])
    assert "has no test result" in words(app)
    assert [run["status"] for run in chart(app)["runs"]] == ["finished", "running"]
    app.selectbox(key="compare_metric").set_value("train/loss")
    assert chart(checked(app.run()))["panels"][0]["metrics"] == ["train/loss"]


def test_compare_calls_random_weights_a_control(visit_week, week):
    app = visit_week("compare", run=[week[1]["finished"].id, week[1]["random"].id])
    assert "control" in words(app)
    assert "random weights" in app.dataframe[0].value["Weights"].tolist()


def test_compare_says_when_an_address_names_a_run_that_is_gone(visit_week, week):
    app = visit_week("compare", run=[week[1]["finished"].id, "gone"])
    assert "No run has the id gone" in words(app)


def test_compare_with_fewer_than_two_runs_invites_to_launch(visit):
    assert "Comparing takes two runs" in words(visit("compare"))
