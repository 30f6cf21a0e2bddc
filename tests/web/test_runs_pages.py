"""The pages Runs, Run, Queue and Compare as a visitor uses them, without a browser."""

import json
import shutil

import numpy as np
import pytest
import yaml
from seeding import Training, config, seed, seed_sweep
from streamlit.testing.v1 import AppTest

from sousa_engine.analysis import baselines
from sousa_engine.core import config as config_module
from sousa_engine.core import sweep_spec
from sousa_engine.core.config import DataConfig
from sousa_engine.core.records import Event, RunStatus, SweepRun
from sousa_engine.data import manifest as manifests
from sousa_engine.data.manifest import open_dataset
from sousa_engine.runs import ensure, preflight, prepare, sweep_plan
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.training import checkpoint
from sousa_engine.web import handover
from sousa_engine.workspace import PROJECT_ROOT

PAGES = PROJECT_ROOT / "pages"


@pytest.fixture
def ensured():
    """The workspaces that a page started a supervisor for; no supervisor really starts."""
    return []


@pytest.fixture
def visit(workspace, monkeypatch, ensured):
    """visit("runs"), visit("run", id=...): the page after its first run, without an exception."""
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    monkeypatch.setattr(ensure, "ensure", ensured.append)

    def open_page(name, **query):
        app = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=180)
        for key, value in query.items():
            app.query_params[key] = value
        if name != "home":  # which opens by itself
            app.switch_page(str(PAGES / f"{name}.py"))
        return checked(app.run())

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
    blocks = [given["text"] for given in components(app) if given.keys() == {"text"}]
    return "\n".join([*(str(e.value) for e in elements), *blocks])


def chart(app):
    """What the live chart was given."""
    (given,) = [given for given in components(app) if given.keys() != {"text"}]
    return given


def components(app):
    """What each component of the page was given."""
    return [json.loads(component.proto.json) for component in app.get("bidi_component")]


# Runs


def table(app):
    """The rows as the browser gets them."""
    given = chart(app)
    return [dict(zip(given["fields"], row, strict=True)) for row in given["rows"]]


def ids(app):
    return [row["id"] for row in table(app)]


def tell(app, **state):
    """What the browser would: ticks=[ids], view={...}; the page then ran."""
    return checked(leave(app, **state).run())


def leave(app, **state):
    """As `tell`, but the page did not run yet: what it shows is older than the ticks."""
    given = chart(app)
    sent = dict(app.session_state.get("runs_table", {}))
    if "ticks" in state:
        sent["ticks"] = {"rev": given["seed_rev"], "ids": state["ticks"]}
    if "view" in state:
        unmoved = {"sort": "created", "descending": True, "page": 0, "of": given["of"], "request": 1}
        sent["view"] = unmoved | state["view"]
    app.session_state["runs_table"] = sent
    return app


def click(app, key):
    return checked(app.button(key=key).click().run())


def test_empty_workspace_invites_to_launch(visit):
    app = visit("runs")
    assert "Nothing trained yet" in words(app)
    assert not app.get("bidi_component")


def test_every_run_is_listed_newest_first_with_its_n(visit_week, week):
    app = visit_week("runs")
    found = {row["id"]: row for row in table(app)}
    assert chart(app)["total"] == len(found) == len(week[1]) == 11
    assert [row["status"] for row in found.values()][:3] == ["queued", "running", "finished"]
    finished = found[week[1]["finished"].id]
    assert finished["test_n"] == 200 and 0.5 < finished["test"] < 0.7 and finished["progress"] == 1
    assert len(finished["sparkline"]) == 10 and finished["sparkline"][-1] > finished["sparkline"][0]
    assert finished["targets"] == "attention+mlp · 24 modules" and finished["trainable"] == 118_696
    stopped = found[week[1]["stopped"].id]
    assert round(stopped["progress"], 2) == 0.42 and stopped["test"] is None and stopped["test_n"] is None
    running = found[week[1]["running"].id]
    assert running["progress"] == 0.5 and running["valid_n"] == 200 and running["took_s"] is None


def test_random_weights_are_labelled_in_the_list(visit_week, week):
    labels = {row["id"]: (row["weights"], row["random"]) for row in table(visit_week("runs"))}
    assert labels[week[1]["random"].id] == ("random weights", True)
    assert labels[week[1]["finished"].id] == ("pretrained", False)


def test_list_is_filtered_by_text_and_status(visit_week, week):
    app = visit_week("runs")
    app.text_input(key="q").set_value("ATTENTION only")
    assert ids(checked(app.run())) == [week[1]["attention"].id]
    app.text_input(key="q").set_value("")
    app.session_state["status"] = ["failed", "lost"]
    assert set(ids(checked(app.run()))) == {week[1]["failed"].id, week[1]["lost"].id}
    app.text_input(key="q").set_value("no such run")
    assert "No run matches" in words(checked(app.run()))


def test_headings_sort_the_whole_list_and_what_is_missing_comes_last(visit_week, week):
    app = tell(visit_week("runs"), view={"sort": "test"})
    measured = [row["test"] for row in table(app) if row["test"] is not None]
    assert len(measured) == 6 and measured == sorted(measured, reverse=True)
    assert [row["test"] for row in table(app)][6:] == [None] * 5
    app = tell(app, view={"sort": "test", "descending": False})
    assert [row["test"] for row in table(app)] == measured[::-1] + [None] * 5
    app = tell(app, view={"sort": "title", "descending": False})
    assert [row["title"] for row in table(app)][:2] == ["ast-mini · tiny · seed 1", "ast-mini · tiny · seed 2"]
    given = chart(tell(app, view={"sort": "1; DROP TABLE runs"}))
    assert given["sort"] == "title", "an unknown sort order is ignored"


def test_a_run_queued_elsewhere_is_noticed(visit, workspace):
    Training.begin(workspace, config(seed=1, max_epochs=1)).finish()
    app = visit("runs")
    with Store.open(workspace) as store:
        store.runs.enqueue(config(seed=2))
    assert [row["status"] for row in table(checked(app.run()))] == ["queued", "finished"]


def test_ticked_runs_open_compare_with_exactly_these_runs(visit_week, week):
    chosen = [week[1]["finished"].id, week[1]["rank 16"].id]
    app = visit_week("runs")
    assert app.button(key="compare_runs").disabled and app.button(key="open_run").disabled
    app = tell(app, ticks=chosen)
    assert app.button(key="open_run").disabled
    app = click(app, "compare_runs")
    assert app.query_params["run"] == chosen
    assert app.title[0].value == "Compare"


def test_one_ticked_run_opens_its_page(visit_week, week):
    app = tell(visit_week("runs"), ticks=[week[1]["attention"].id])
    app = click(app, "open_run")
    assert app.query_params["id"] == week[1]["attention"].id
    assert app.title[0].value == "attention only"


def test_ticks_stay_with_their_runs_when_runs_arrive_and_the_order_and_the_filter_change(visit, workspace):
    chosen = [Training.begin(workspace, config(seed=seed, max_epochs=1)).finish().id for seed in (1, 2)]
    app = tell(visit("runs"), ticks=chosen)
    sent = chart(app)["seed"], chart(app)["seed_rev"]
    with Store.open(workspace) as store:
        newest = store.runs.enqueue(config(seed=3, name="zebra"))
    app = checked(app.run())
    assert ids(app) == [newest.id, *chosen[::-1]]
    app = tell(app, view={"sort": "title", "descending": False})
    assert ids(app) == [*chosen, newest.id]
    app.text_input(key="q").set_value("zebra")
    app = checked(app.run())
    assert ids(app) == [newest.id] and "2 runs ticked" in words(app)
    assert (chart(app)["seed"], chart(app)["seed_rev"]) == sent, "the ticks were sent back to the browser"
    app = click(app, "compare_runs")
    assert app.query_params["run"] == chosen


def test_ticks_come_back_with_the_page_and_unknown_ids_are_dropped(visit, workspace):
    run = Training.begin(workspace, config(seed=1, max_epochs=1)).finish()
    app = tell(visit("runs"), ticks=[run.id, "nonsense", "../../etc"])
    assert "1 run ticked" in words(app) and not app.button(key="open_run").disabled
    assert chart(app)["seed"] == [run.id] and chart(app)["seed_rev"] > 0
    app = checked(app.switch_page(str(PAGES / "home.py")).run())
    app = checked(app.switch_page(str(PAGES / "runs.py")).run())
    assert "1 run ticked" in words(app) and chart(app)["seed"] == [run.id]
    assert "ticked" not in words(click(app, "untick_runs"))


def test_a_list_is_paged_and_another_list_begins_at_its_top(visit, workspace):
    with Store.open(workspace) as store:
        for seed in range(130):
            store.runs.enqueue(config(seed=seed, name=f"n{seed}"))
    app = visit("runs")
    assert (chart(app)["total"], chart(app)["first"], len(table(app))) == (130, 0, 100)
    app = tell(app, view={"page": 1})
    assert (chart(app)["first"], len(table(app))) == (100, 30) and table(app)[-1]["seed"] == 0
    assert chart(tell(app, view={"page": 7}))["first"] == 100, "the last page there is"
    app.text_input(key="q").set_value("n12")
    app = checked(app.run())
    assert (chart(app)["first"], chart(app)["total"]) == (0, 11)


# Runs: what is done with what is ticked


@pytest.fixture
def two(workspace):
    """Two finished runs, newest last."""
    return [Training.begin(workspace, config(seed=seed, max_epochs=1)).finish() for seed in (1, 2)]


def test_ticked_runs_are_tagged_in_a_dialog_and_found_by_their_tag(visit, workspace, two):
    app = tell(visit("runs"), ticks=[run.id for run in two])
    app = click(app, "tag_runs")
    assert app.button(key="tags_save").disabled
    app.session_state["tags_added"] = ["best", "paper"]
    app = click(checked(app.run()), "tags_save")
    with Store.open(workspace) as store:
        assert store.marks.tags() == {"best": 2, "paper": 2}
        store.marks.remove_tags([two[0].id], ["best"])
    assert "2 runs tagged." in [toast.value for toast in app.toast]
    assert not [button for button in app.button if button.key == "tags_save"], "the dialog is closed"
    app.multiselect(key="tag").set_value(["best"])
    app = checked(app.run())
    assert ids(app) == [two[1].id] and table(app)[0]["tags"] == ["best", "paper"]


def test_what_cannot_be_a_tag_is_refused_in_a_sentence(visit, workspace, two):
    app = click(tell(visit("runs"), ticks=[two[0].id]), "tag_runs")
    app.session_state["tags_added"] = ["x" * 41]
    app = click(checked(app.run()), "tags_save")
    assert "one line of 1 to 40 characters" in app.toast[0].value
    assert app.button(key="tags_save"), "the dialog stays"


def test_archived_runs_leave_the_list_and_have_one_of_their_own(visit, workspace, two):
    app = tell(visit("runs"), ticks=[two[0].id])
    app = click(app, "archive_runs")
    assert ids(app) == [two[1].id] and "archived" in app.toast[0].value
    app.toggle(key="archived").set_value(True)
    app = checked(app.run())
    assert ids(app) == [two[0].id]
    app = click(app, "unarchive_runs")
    assert "No run matches" in words(app)
    app.toggle(key="archived").set_value(False)
    assert set(ids(checked(app.run()))) == {run.id for run in two}


def test_one_run_is_deleted_after_a_question_and_the_tick_goes_with_it(visit, workspace, two):
    app = tell(visit("runs"), ticks=[two[0].id])
    app = click(app, "delete_runs")
    assert two[0].title in words(app) and " MB" in words(app)
    with Store.open(workspace) as store:
        assert store.runs.get(two[0].id), "asking deletes nothing"
    app = click(app, "delete_now")
    assert ids(app) == [two[1].id] and "ticked" not in words(app)
    assert not workspace.run_dir(two[0].id).exists() and workspace.run_dir(two[1].id).is_dir()
    assert "1 run deleted." in [toast.value for toast in app.toast]


def test_several_runs_are_deleted_only_once_their_number_is_typed(visit, workspace, two):
    app = tell(visit("runs"), ticks=[run.id for run in two])
    app = click(app, "delete_runs")
    assert two[0].id in words(app) and two[1].id in words(app)
    assert app.button(key="delete_now").disabled
    app.text_input(key="delete_word").set_value("delete 3")
    assert checked(app.run()).button(key="delete_now").disabled
    app.text_input(key="delete_word").set_value("delete 2")
    app = click(checked(app.run()), "delete_now")
    assert "Nothing trained yet" in words(app)
    with Store.open(workspace) as store:
        assert store.runs.all() == ()


def test_runs_that_are_not_over_can_be_stopped_and_nothing_else(visit, workspace, ensured, two):
    with Store.open(workspace) as store:
        queued = store.runs.enqueue(config(seed=3))
    app = tell(visit("runs"), ticks=[two[0].id, queued.id])
    assert app.button(key="archive_runs").disabled and app.button(key="delete_runs").disabled
    assert "1 of these is still queued or running" in app.button(key="delete_runs").help
    app = click(app, "stop_runs")
    assert ensured == [workspace]
    with Store.open(workspace) as store:
        run = store.runs.get(queued.id)
    assert run is not None and run.status is RunStatus.STOPPED
    assert not app.button(key="delete_runs").disabled
    assert not [button for button in app.button if button.key == "stop_runs"]


def test_a_button_acts_on_what_is_ticked_when_it_is_clicked_not_when_it_was_drawn(visit, workspace, ensured, two):
    """A tick and a click on a button can reach the server together."""
    both = [run.id for run in two]
    with Store.open(workspace) as store:
        queued = [store.runs.enqueue(config(seed=seed)).id for seed in (3, 4)]
    app = tell(visit("runs"), ticks=queued[:1])
    click(leave(app, ticks=queued), "stop_runs")
    with Store.open(workspace) as store:
        assert [store.runs.get(run_id).status for run_id in queued] == [RunStatus.STOPPED] * 2
        store.marks.delete(queued)
    app = click(leave(tell(app, ticks=both[:1]), ticks=both), "delete_runs")
    assert all(f"`{run_id}`" in words(app) for run_id in both)
    app = click(leave(tell(visit("runs"), ticks=both), ticks=both[:1]), "archive_runs")
    assert ids(app) == both[1:], "the one that was unticked stays"
    before = words(app := tell(app, ticks=both[1:]))
    app = click(leave(app, ticks=[]), "delete_runs")
    assert "1 run ticked" in before and not [button for button in app.button if button.key == "delete_now"]


def test_the_list_of_a_sweep_is_the_runs_of_that_sweep(visit, workspace):
    with Store.open(workspace) as store:
        store.runs.enqueue(config(seed=9))
        runs = [SweepRun(config(seed=seed), 0, {}) for seed in (1, 2)]
        sweep = store.sweeps.add("ranks", {}, runs, created_by="page")
    app = visit("runs", of_sweep=f"ranks · {sweep.id}")
    assert sorted(row["seed"] for row in table(app)) == [1, 2]


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
    assert "n = 200 · 95 % interval" in said and "majority-class baseline: 2.5 %" in said
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


def layers(visit, run, first="Results"):
    """The page of a run, open at its layers."""
    return tab(visit("run", id=run.id), "Layers", run.id, first)


def picture(app):
    """The rows of the heatmap: the text of each cell, None if the module would be left out."""
    heatmap = json.loads(app.get("plotly_chart")[0].proto.spec)["data"][0]
    return [
        [text if value is not None else None for text, value in zip(*row, strict=True)]
        for row in zip(heatmap["text"], heatmap["z"], strict=True)
    ]


def test_layers_of_a_finished_run_show_how_far_each_target_was_moved(visit_week, week):
    run = week[1]["finished"]
    app = layers(visit_week, run)
    said = words(app)
    assert "at step 380, epoch 10: the best checkpoint" in said and "proves nothing" in said
    table = app.dataframe[0].value
    assert len(table) == 24 and table["Update"].is_monotonic_decreasing
    assert table["Module"][0] == "layers.3.attention.o_proj" and table["Parameters"][0] == 8 * 2 * 192
    assert table["Share"].sum() == pytest.approx(100 * 110_592 / 118_696)
    cells = picture(app)
    assert len(cells) == 4 and all(len(row) == 6 and all(row) for row in cells)
    assert app.button(key="save_set").disabled and app.button(key="launch_pruned").disabled


def test_leaving_out_the_weakest_makes_a_target_set(visit, workspace):
    run = Training.begin(workspace).finish()
    app = layers(visit, run)
    app.slider(key=f"keep-{run.id}").set_value(25)
    app = checked(app.run())
    assert "6 of 24 modules are kept" in words(app) and "instead of 118,696" in words(app)
    table = app.dataframe[0].value
    assert table["Kept"].tolist() == [True] * 6 + [False] * 18
    assert sum(cell is not None for row in picture(app) for cell in row) == 6
    app.text_input(key=f"set-{run.id}").set_value("  the few_strong ")
    app = checked(app.run())
    app = checked(app.button(key="save_set").click().run())
    assert app.toast[0].value == r"Saved 'the few\_strong': 6 modules. Find it on Launch and on Backbones."
    with Store.open(workspace) as store:
        (saved,) = store.target_sets.all("ast-mini")
    strong = {f"audio_spectrogram_transformer.{end}" for end in table["Module"][:6]}
    assert (saved.name, saved.head, set(saved.paths)) == ("the few_strong", "train", strong)
    app.text_input(key=f"set-{run.id}").set_value("")
    app = checked(app.run())
    checked(app.button(key="save_set").click().run())
    with Store.open(workspace) as store:
        assert store.target_sets.all("ast-mini")[0].name == f"strongest 6 of 24, run {run.id[-4:]}"
    again = prepare.prepare({"lora": {"targets": list(saved.paths)}, "data": {"dataset": "tiny"}}).config
    trainable = preflight.preflight(again, workspace).counts.trainable
    assert f"are kept: {trainable:,} trainable parameters instead of 118,696" in words(app)


def test_the_strongest_are_ticked_in_the_module_tree(visit, workspace):
    run = Training.begin(workspace, config(r=16)).finish()
    app = layers(visit, run)
    app.slider(key=f"keep-{run.id}").set_value(25)
    strong = checked(app.run()).dataframe[0].value["Module"][:6]
    app = checked(app.button(key="open_tree").click().run())
    assert app.title[0].value == "Backbones" and app.query_params["variant"] == "ast-mini"
    tree = chart(app)
    assert {path.removeprefix("audio_spectrogram_transformer.") for path in tree["seed"]} == set(strong)
    assert tree["r"] == 16


def test_a_run_without_the_weakest_is_launched_with_the_same_settings(visit, workspace):
    run = Training.begin(workspace, config(seed=5, r=16, name="wide")).finish()
    app = layers(visit, run)
    app.slider(key=f"keep-{run.id}").set_value(50)
    strong = checked(app.run()).dataframe[0].value["Module"][:12]
    app = checked(app.button(key="launch_pruned").click().run())
    assert app.title[0].value == "Launch" and app.session_state["launch.seed"] == 5
    assert app.session_state["launch.lora.r"] == 16 and app.session_state["launch.name"] == ""
    assert {
        path.removeprefix("audio_spectrogram_transformer.") for path in app.session_state[handover.TICKS].paths
    } == {*strong}


def test_an_ablation_of_a_run_fills_the_form_of_a_sweep_and_starts_nothing(visit, workspace):
    run = Training.begin(workspace, config(seed=5, r=4, name="wide", lr=0.004)).finish()
    app = layers(visit, run)
    assert "Retrains this run with 15 variants of the target set, 3 seeds each" in words(app)
    app = checked(app.button(key="ablate").click().run())
    assert app.title[0].value == "Sweeps" and not app.error
    spec = sweep_spec.build(yaml.safe_load(next(c.value for c in app.code if "axes:" in c.value)))
    wanted = sweep_plan.ablation_of(run.config)
    assert spec.model_copy(update={"base": wanted.base}) == wanted and len(spec.sets) == 15
    assert spec.base["lora"]["r"] == 4 and spec.base["training"]["lr"] == 0.004
    with Store.open(workspace) as store:
        assert store.sweeps.all() == ()


def test_a_run_that_adapted_nothing_has_no_ablation(visit, workspace):
    run = Training.begin(workspace, config(roles=("none",))).finish()
    assert not [button for button in layers(visit, run).button if button.key == "ablate"]


def test_layers_of_a_live_run_show_its_last_epoch_and_nothing_to_leave_out(visit_week, week):
    run = week[1]["running"]
    app = layers(visit_week, run, "Log")
    assert "at step 190, epoch 5" in words(app) and "When the run ends" in words(app)
    assert len(app.dataframe[0].value) == 24 and not app.slider


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ({"method": "full"}, "Full fine-tuning changes the weights themselves"),
        ({"method": "bitfit"}, "BitFit trains only biases"),
        ({"targets": []}, "only the head is trained"),
    ],
)
def test_what_has_no_adapters_says_why_there_is_nothing(visit, workspace, lora, told):
    with Store.open(workspace) as store:
        run = store.runs.enqueue(config_module.build({"lora": lora}))
    app = layers(visit, run, "Settings")
    assert told in words(app) and not app.get("plotly_chart")


def test_a_run_that_measured_no_updates_says_so(visit, workspace):
    training = Training.begin(workspace)
    training.steps(5)
    assert "Available after the first epoch." in words(layers(visit, training.run, "Log"))
    run = training.end(RunStatus.STOPPED, "Stopped at step 5.")
    app = layers(visit, run, "Settings")
    assert "Not measured: the run ended before its first epoch" in words(app) and not app.get("plotly_chart")


def test_metrics_of_single_modules_are_not_offered_on_compare(visit_week, week):
    app = visit_week("compare", run=[week[1]["finished"].id, week[1]["seed 2"].id])
    offered = app.selectbox(key="compare_metric").options
    assert "valid/accuracy" in offered and not [name for name in offered if name.startswith("update/")]


def test_failed_run_shows_the_cause_the_step_and_the_last_lines(visit_week, week):
    app = visit_week("run", id=week[1]["failed"].id)
    said = words(app)
    assert "The loss became nan at step 120" in app.error[0].value
    assert not app.warning
    assert "sousa_engine.core.errors.RunError" in said and "\x1b" not in said
    assert app.get("button") and not [b for b in app.button if b.key == "stop"]


def test_divergence_that_the_reason_does_not_name_is_told_with_its_step(visit, workspace):
    training = Training.begin(workspace)
    training.steps(20, diverge_at=12)
    training.end(RunStatus.STOPPED, "Stopped at step 20.")
    app = visit("run", id=training.run.id)
    assert app.warning[0].value == "train/loss became NaN or infinite at step 12."


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
        run = store.runs.get(training.run.id)
    assert run is not None and run.status is RunStatus.STOPPING
    assert "saves a checkpoint first" in app.toast[0].value
    assert ensured == [workspace]
    assert app.button(key="stop").disabled and app.button(key="stop").label == "Stopping"


def test_queued_run_is_taken_out_of_the_queue(visit, workspace):
    with Store.open(workspace) as store:
        queued = store.runs.enqueue(config())
    app = visit("run", id=queued.id)
    assert chart(app)["runs"][0]["status"] == "queued"
    app = checked(app.button(key="stop").click().run())
    with Store.open(workspace) as store:
        run = store.runs.get(queued.id)
    assert run is not None and run.status is RunStatus.STOPPED
    assert "Removed from the queue" in app.toast[0].value


def test_stop_now_is_asked_for_and_its_steps_are_told(visit, workspace, ensured):
    training = Training.begin(workspace)
    training.steps(5)
    app = visit("run", id=training.run.id)
    app = checked(app.button(key="stop").click().run())
    assert "Stop and save requested" in words(app)
    assert "if it has not stopped" not in words(app)  # the keeper has not told the trainer yet
    with Store.open(workspace) as store:
        asked_ms = store.runs.get(training.run.id).stop_requested_at_ms
        Ledger(store).add_events_once(
            training.run.id, [Event(at_ms=asked_ms + 1, kind="keeper", message="SIGTERM to it.")]
        )
    assert "SIGKILL if it has not stopped by then" in words(checked(app.run()))
    app = click(app, "kill")
    with Store.open(workspace) as store:
        assert store.runs.get(training.run.id).kill_requested_at_ms is None  # the dialog asks first
    app = click(app, "kill_now")
    with Store.open(workspace) as store:
        run = store.runs.get(training.run.id)
    assert run is not None and run.kill_requested_at_ms and run.status is RunStatus.STOPPING
    assert "Stop now requested" in words(app) and app.button(key="kill").disabled
    assert "if it has not stopped" not in words(app)
    assert ensured == [workspace, workspace]


def test_a_run_that_was_never_asked_to_stop_shows_no_ladder(visit_week, week):
    assert "Stop log" not in words(visit_week("run", id=week[1]["finished"].id))


def test_a_run_is_cloned_once_for_all_clicks_and_shown(visit, workspace, ensured):
    training = Training.begin(workspace)
    first = training.finish()
    app = visit("run", id=first.id)
    app.button(key=f"clone-{first.id}").click()
    page, clicked = app._page_hash, app._tree.get_widget_states()
    for _ in range(5):
        app._page_hash = page
        app.query_params["id"] = first.id
        checked(app._run(clicked))
    with Store.open(workspace) as store:
        made = [run for run in store.runs.all() if run.id != first.id]
    assert len(made) == 1 and made[0].config == first.config and made[0].status is RunStatus.QUEUED
    assert app.query_params["id"] == [made[0].id] or app.query_params["id"] == made[0].id


def test_runs_that_are_ticked_are_cloned(visit, workspace, ensured):
    with Store.open(workspace) as store:
        ids = [store.runs.request_stop(store.runs.enqueue(config(seed=seed)).id).id for seed in (1, 2, 3)]
    app = tell(visit("runs"), ticks=ids[:2])
    click(app, "clone_runs")
    with Store.open(workspace) as store:
        assert [row.seed for row in store.queue.waiting()] == [1, 2]
        assert app.button(key="clone_runs").disabled  # cloned runs are no longer ticked, so an extra click does nothing


# Queue


def test_the_queue_is_ordered_on_its_page(visit, workspace, ensured):
    training = Training.begin(workspace)
    training.steps(5)
    with Store.open(workspace) as store:
        a, b, c = (store.runs.enqueue(config(seed=seed, name=f"run {seed}")).id for seed in (1, 2, 3))

    def order():
        with Store.open(workspace) as store:
            return [row.id for row in store.queue.waiting()]

    app = visit("queue")
    assert "Waiting: 3" in words(app)
    assert app.button(key=f"front-{a}").disabled and app.button(key=f"down-{c}").disabled
    click(app, f"front-{c}")
    assert order() == [c, a, b]
    click(app, f"down-{c}")
    assert order() == [a, c, b]
    click(app, f"up-{b}")
    assert order() == [a, b, c]
    app = click(app, f"out-{b}")
    assert order() == [a, c] and "Waiting: 2" in words(app)
    with Store.open(workspace) as store:
        assert store.runs.get(b).status is RunStatus.STOPPED
        training.end(RunStatus.STOPPED, "x")
        assert Ledger(store).claim("cpu", "n").id == a
    app = click(app, f"front-{c}")  # meanwhile the other one left the queue
    assert "place 1" in app.toast[0].value


def test_a_paused_queue_is_told_on_every_page_until_it_goes_on(visit, workspace, ensured):
    with Store.open(workspace) as store:
        store.runs.enqueue(config())
    app = visit("queue")
    assert not app.warning
    app = click(app, "pause")
    assert "The queue has been paused since" in app.warning[0].value
    assert "The queue has been paused since" in visit("launch").warning[0].value
    with Store.open(workspace) as store:
        assert store.queue.settings().is_paused
    app = click(app, "resume")
    assert not app.warning and ensured == [workspace]
    with Store.open(workspace) as store:
        assert not store.queue.settings().is_paused


def test_cpu_slots_are_set_on_the_page_of_the_queue(visit, workspace, ensured):
    app = visit("queue")
    checked(app.number_input(key="cpu_slots-1").set_value(3).run())
    with Store.open(workspace) as store:
        assert store.queue.settings().cpu_slots == 3
    assert [badge.value for badge in app.markdown if "cpu:2" in str(badge.value)]


def test_a_queued_run_is_brought_to_the_front_on_its_own_page(visit, workspace, ensured):
    with Store.open(workspace) as store:
        first, last = (store.runs.enqueue(config(seed=seed)).id for seed in (1, 2))
    app = click(visit("run", id=last), "front")
    with Store.open(workspace) as store:
        assert [row.id for row in store.queue.waiting()] == [last, first]
    assert "place 1" in app.toast[0].value


def test_launch_again_hands_over_the_settings(visit_week, week):
    run = week[1]["rank 16"]
    app = visit_week("run", id=run.id)
    app = checked(app.button(key="again").click().run())
    assert app.title[0].value == "Launch"
    assert app.session_state["launch.lora.r"] == 16
    assert app.session_state[handover.TICKS].paths == tuple(target.path for target in run.config.lora.targets)


def test_run_is_renamed_on_its_page(visit, workspace):
    training = Training.begin(workspace)
    app = visit("run", id=training.run.id)
    app.text_input(key=f"name-{training.run.id}").set_value("a better name")  # typed, and Save clicked at once
    app = checked(app.button(key="rename").click().run())
    assert app.title[0].value == "a better name"


def test_tags_and_a_note_are_written_on_the_page_of_a_run(visit, workspace):
    run = Training.begin(workspace, config(max_epochs=1)).finish()
    with Store.open(workspace) as store:
        store.marks.set_tags(run.id, ["draft"])
    app = visit("run", id=run.id)
    app.session_state[f"tags-{run.id}"] = ["best", "paper"]
    app.text_area(key=f"note-{run.id}").set_value("the *one* to show\nsecond line")
    app = click(app, "rename")  # typed, and clicked at once
    with Store.open(workspace) as store:
        found = store.runs.get(run.id)
    assert found is not None and (found.tags, found.note) == (("best", "paper"), "the *one* to show\nsecond line")
    assert r"the \*one\* to show" in words(app)
    assert found.title == run.title


def test_a_run_is_archived_and_deleted_on_its_page(visit, workspace):
    run = Training.begin(workspace, config(max_epochs=1)).finish()
    kept = Training.begin(workspace, config(seed=2, max_epochs=1)).finish()
    app = click(visit("run", id=run.id), "archive")
    with Store.open(workspace) as store:
        assert store.runs.get(run.id).archived_at_ms
    app = click(click(app, "unarchive"), "delete")
    assert " MB" in words(app)
    app = click(app, "delete_now")
    assert app.title[0].value == "Runs" and ids(app) == [kept.id]
    assert not workspace.run_dir(run.id).exists()


def test_a_run_that_trains_can_neither_be_archived_nor_deleted(visit, workspace):
    app = visit("run", id=Training.begin(workspace).run.id)
    assert not {"archive", "unarchive", "delete"} & {button.key for button in app.button}


def test_title_is_shown_as_it_was_written_never_as_markup(visit, workspace):
    from sousa_engine.web.parts import plain

    training = Training.begin(workspace, config(name="lr_5e-4 *best* :red[x] $a$ <b>"))
    app = visit("run", id=training.run.id)
    assert app.title[0].value == r"lr\_5e-4 \*best\* \:red\[x\] \$a\$ \<b\>" == plain(training.run.title)


# Compare


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
    from sousa_engine.workspace import Workspace

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

    def hears_nothing(manifest, asked, *rest):
        return np.zeros((len(asked.clips), 1)), np.zeros((len(asked.clips), 1))

    def guess(seed):
        return lambda: DummyClassifier(strategy="stratified", random_state=int(seed))

    monkeypatch.setattr(baselines, "_figures", hears_nothing)
    monkeypatch.setattr(baselines, "_linear", lambda c: {f"a guess {c}": guess(100 * c)})
    monkeypatch.setattr(baselines, "_trees", lambda manifest: {"another guess": guess(2)})
    manifest, workspace = open_dataset(DataConfig(dataset="tiny")), week[0]
    folder = baselines.folder_of(manifest, workspace)
    folder.mkdir(parents=True)
    (folder / "figures.part").touch()
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
    app = section(visit_week("compare", run=chosen), "Cost")
    assert "majority class" not in words(app) and "Dashed" not in words(app) and "Compute baselines" not in links(app)
    assert not any(figure["layout"].get("shapes") for figure in figures(app))


# Going on


@pytest.fixture
def stopped(workspace):
    """A run that was stopped within its second epoch, with a checkpoint that could be gone on from."""
    training = Training.begin(workspace, config(max_epochs=3))
    training.steps(50)
    data = manifests.fingerprint(manifests.open_dataset(training.run.config.data))
    told = {"epoch": 2, "best": None, "run": {"data": data}}
    checkpoint.save(training.folder / "checkpoints", 50, {}, told)
    return training.end(RunStatus.STOPPED, "Stopped at step 50. A checkpoint was saved.")


def test_a_stopped_run_is_resumed_by_a_button_that_says_from_where(visit, workspace, ensured, stopped):
    app = visit("run", id=stopped.id)
    assert "This run can be resumed from step 50, epoch 2." in words(app) and not app.button(key="resume").disabled
    app = checked(app.button(key="resume").click().run())
    with Store.open(workspace) as store:
        assert store.runs.get(stopped.id).status is RunStatus.QUEUED
    assert ensured == [workspace] and "resume" not in {button.key for button in app.button}
    assert "continues from step 50" in app.toast[0].value


def test_a_run_that_cannot_be_resumed_says_why(visit, workspace, stopped):
    (workspace.run_dir(stopped.id) / "checkpoints" / "step-00000050" / checkpoint.STATE).unlink()
    app = visit("run", id=stopped.id)
    assert "cannot be resumed" in words(app) and "no state.pt" in words(app)
    assert app.button(key="resume").disabled


def test_a_finished_run_has_no_button_to_resume(visit_week, week):
    app = visit_week("run", id=week[1]["finished"].id)
    assert "resume" not in {button.key for button in app.button} and "resumed" not in words(app)
