"""The page of a run as a visitor uses it, without a browser."""

import json

import pytest
import yaml
from seeding import Training, config
from visiting import chart, checked, click, ids, words

from sousa_engine.core import config as config_module
from sousa_engine.core import sweep_spec
from sousa_engine.core.records import Event, RunStatus
from sousa_engine.data import manifest as manifests
from sousa_engine.runs import preflight, prepare, sweep_plan
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.training import checkpoint
from sousa_engine.web import handover


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
    assert "transformers 5.23.0" in table and r"q\_proj ×4" in table and "layers 0 to 3" in table


def test_settings_show_what_a_trainer_reported_as_it_is_written(visit, workspace):
    """Streamlit reads the cells of such a table as Markdown, and would fetch a picture from anywhere."""
    training = Training.begin(workspace)
    training.report(facts={"device": "![x](https://evil.example/x.png)"})
    run = training.finish()
    app = tab(visit("run", id=run.id), "Settings", run.id, "Results")
    assert r"!\[x\](" in app.table[0].value.to_string()


def test_a_run_that_cannot_be_read_says_why_and_can_be_stopped_and_deleted(visit, workspace):
    with Store.open(workspace) as store:
        run = store.runs.enqueue(config())
        with store.connection.writing() as db:
            db.execute("UPDATE runs SET config_json = json_set(config_json, '$.training.of_next_year', 1)")
        app = visit("run", id=run.id)
        assert "cannot be read" in app.error[0].value and r"of\_next\_year" in app.error[0].value
        app = click(app, "stop")
        assert store.runs.get(run.id).status is RunStatus.STOPPED
        assert [button.label for button in app.button if button.key == "delete"] == ["Delete"]


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
    assert app.title[0].value == "Launch" and app.session_state["launch.seed"] == "5"
    assert app.session_state["launch.lora.r"] == "16" and app.session_state["launch.name"] == ""
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


def test_failed_run_shows_the_cause_the_step_and_the_last_lines(visit_week, week):
    app = visit_week("run", id=week[1]["failed"].id)
    said = words(app)
    assert "The loss became nan at step 120" in app.error[0].value
    assert not app.warning
    assert "sousa_engine.core.errors.RunError" in said and "\x1b" not in said
    assert app.button(key="stop").disabled and app.button(key="kill").disabled


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
    assert app.session_state["launch.lora.r"] == "16"
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
    assert app.button(key="archive").disabled and app.button(key="delete").disabled


def test_a_button_keeps_its_place_whatever_happens_to_the_run(visit, workspace):
    """A click that was meant for Stop must not meet Clone, because the run ended meanwhile."""

    def places(run_id):
        return [
            b.key for b in visit("run", id=run_id).button if b.key and b.key not in ("front", "unarchive", "archive")
        ]

    with Store.open(workspace) as store:
        run = store.runs.enqueue(config(max_epochs=1))
    seen = [places(run.id)]
    training = Training.take(workspace, run)
    seen.append(places(run.id))
    with Store.open(workspace) as store:
        store.runs.request_stop(run.id)
    seen.append(places(run.id))
    training.end(RunStatus.STOPPED, "Stopped.")
    seen.append(places(run.id))
    assert {"stop", "kill", "resume", f"clone-{run.id}", "delete"} <= {*seen[0]}
    assert all(keys == seen[0] for keys in seen)


def test_what_cannot_be_undone_can_be_cancelled(visit, workspace):
    run = Training.begin(workspace, config(max_epochs=1)).finish()
    app = click(click(visit("run", id=run.id), "delete"), "delete_now_not")
    assert not [button for button in app.button if button.key == "delete_now"]
    with Store.open(workspace) as store:
        assert store.runs.get(run.id)


def test_title_is_shown_as_it_was_written_never_as_markup(visit, workspace):
    from sousa_engine.web.parts import plain

    training = Training.begin(workspace, config(name="lr_5e-4 *best* :red[x] $a$ <b>"))
    app = visit("run", id=training.run.id)
    assert app.title[0].value == r"lr\_5e-4 \*best\* \:red\[x\] \$a\$ \<b\>" == plain(training.run.title)


# Resuming


@pytest.fixture
def stopped(workspace):
    """A run that was stopped within its second epoch, with a checkpoint that could be gone on from."""
    training = Training.begin(workspace, config(max_epochs=3))
    training.steps(50)
    data = manifests.contents(manifests.open_dataset(training.run.config.data))
    told = {"epoch": 2, "best": None, "run": {"contents": data}}
    checkpoint.save(training.folder / "checkpoints", 50, {}, told)
    return training.end(RunStatus.STOPPED, "Stopped at step 50. A checkpoint was saved.")


def test_a_stopped_run_is_resumed_by_a_button_that_says_from_where(visit, workspace, ensured, stopped):
    app = visit("run", id=stopped.id)
    assert "This run can be resumed from step 50, epoch 2." in words(app) and not app.button(key="resume").disabled
    app = checked(app.button(key="resume").click().run())
    with Store.open(workspace) as store:
        assert store.runs.get(stopped.id).status is RunStatus.QUEUED
    assert ensured == [workspace] and app.button(key="resume").disabled
    assert "continues from step 50" in app.toast[0].value


def test_a_run_that_cannot_be_resumed_says_why(visit, workspace, stopped):
    (workspace.run_dir(stopped.id) / "checkpoints" / "step-00000050" / checkpoint.STATE).unlink()
    app = visit("run", id=stopped.id)
    assert "cannot be resumed" in words(app) and "no state.pt" in words(app)
    assert app.button(key="resume").disabled


def test_a_finished_run_cannot_be_resumed(visit_week, week):
    app = visit_week("run", id=week[1]["finished"].id)
    assert app.button(key="resume").disabled and "resumed" not in words(app)
