"""The page Sweeps as a visitor meets it, without a browser: the form, what it would run, one sweep and its tiles."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from seeding import train_next
from streamlit.testing.v1 import AppTest
from visiting import checked

from sousa_engine import targets
from sousa_engine.analysis.sweeps import trial_rows
from sousa_engine.core import sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import RunError
from sousa_engine.core.records import Curve, RunStatus, SweepStatus
from sousa_engine.runs import ensure, preflight, sweep_orders, sweep_plan, timing
from sousa_engine.store.ledger import Ledger
from sousa_engine.web import drafts, fields, handover, parts
from sousa_engine.web.components.trial_tiles import MOST_POINTS, tiles_data
from sousa_engine.web.handover import SweepDraft
from sousa_engine.workspace import PROJECT_ROOT, intake, processes, run_files

PAGES = PROJECT_ROOT / "pages"
BASE = {"data": {"dataset": "micro"}, "training": {"max_epochs": 6}}
GRID = {"axes": {"model": ["ast-mini", "beats-mini"], "targets": ["core"]}, "seeds": [0, 1], "base": BASE}


@pytest.fixture(autouse=True)
def nobody_supervises(monkeypatch):
    monkeypatch.setattr(ensure, "ensure", lambda workspace, options=(): False)


@pytest.fixture
def visit(workspace, monkeypatch):
    """visit("sweeps", id=...): the page after its first run, without an exception."""
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    app = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=300)

    def open_page(name="sweeps", state=None, **query):
        for key, value in query.items():
            app.query_params[key] = value
        for key, value in (state or {}).items():
            app.session_state[key] = value
        if name != "home":  # which opens by itself
            app.switch_page(str(PAGES / f"{name}.py"))
        return checked(app.run())

    return open_page


def words(app):
    """Everything the page says, in one string."""
    elements = [*app.title, *app.subheader, *app.markdown, *app.caption, *app.info, *app.warning, *app.error, *app.text]
    return "\n".join([*(str(e.value) for e in elements), *(str(c.value) for c in app.code)])


def asked(app):
    """The sweep that the page would start, read back from its YAML."""
    return sweep_spec.build(yaml.safe_load(next(c.value for c in app.code if "axes:" in c.value)))


def command(app):
    return next(c.value for c in app.code if c.value.startswith("python -m"))


def started(store, **values):
    return sweep_orders.start(store.workspace, sweep_spec.build({**GRID, **values}), created_by="test")


def tiles(app):
    drawn = [json.loads(component.proto.json or "null") for component in app.get("bidi_component")]
    (found,) = [data for data in drawn if isinstance(data, dict) and "tiles" in data]
    return found["tiles"]


FORM = {"sweep.models": ["ast-mini"], "sweep.data": "micro"}  # small, so that its plan is quick


# The form


def test_the_defaults_can_be_started_at_once_and_lead_to_the_sweep(visit, store):
    app = visit()
    start = app.button(key="sweep.start")
    assert start.label == "Start 12 runs" and not start.disabled
    assert "settings of ast-mini, efficientat-mini, htsat-mini, beats-mini have not been timed" in words(app)
    app = checked(start.click().run())
    (made,) = store.sweeps.all()
    assert app.query_params["id"] == made.id and len(store.sweeps.runs(made.id)) == 12
    assert app.title[0].value == "model × targets"
    assert [tile["state"] for tile in tiles(app)] == ["queued"] * 4


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            {"sweep.seeds": "0 one"},
            "Seeds must be whole numbers separated by spaces, such as 0 1 2 (you entered '0 one').",
        ),
        ({"sweep.seeds": "1 1"}, "lists one twice"),
        ({"sweep.models": [], "sweep.targets": []}, "A sweep needs something to vary"),
        ({"sweep.lr": "fast"}, "Learning rate must be a number such as 0.002 or 2e-3 (you entered 'fast')."),
        ({"sweep.lines": "lora.rr=4"}, "No field named 'lora.rr'. Nearest: lora.r"),
        ({"sweep.lines": "training.lr=0.1"}, "has a separate field above: Learning rate"),
        ({"sweep.lines": "nonsense"}, "is not of the form"),
        ({"sweep.data": fields.OWN_DATA}, "Enter a folder or a table."),
        ({"sweep.axes": [0]}, "Enter values for Learning rate, separated by commas."),
        ({"sweep.axes": [0], "sweep.axis.0.training.lr": "0.1, 0.1"}, "training.lr lists 0.1 twice"),
        ({"sweep.axes": [0], "sweep.axis.0.training.lr": "1e-4..1e-2"}, "A grid needs listed values for training.lr"),
        ({"sweep.seeds": " ".join(map(str, range(1001)))}, "a sweep has at most 1,000"),
        ({"sweep.targets": ["qproj"]}, "Nearest"),
        ({"sweep.data": "my own: a folder or a table", "sweep.data.own": "/no/such"}, "/no/such"),
        ({"sweep.sampler": "random", "sweep.trials": "5"}, "5 trials were requested, but there is only 1 combination"),
    ],
)
def test_what_cannot_be_run_is_said_and_blocks_the_start(visit, state, said):
    app = visit(state=FORM | state)
    assert said in words(app)
    assert app.button(key="sweep.start").disabled and app.button(key="sweep.start").label.startswith("Fix to start: ")


def test_an_axis_is_added_filled_and_removed(visit):
    app = visit(state=FORM)
    app = checked(app.button(key="sweep.add_axis").click().run())
    assert "Learning rate · training.lr" in app.selectbox(key="sweep.axis.0").options
    assert app.button(key="sweep.start").label == "Fix to start: Learning rate"
    app = checked(app.text_input(key="sweep.axis.0.training.lr").set_value("1e-3, 5e-3").run())
    assert app.button(key="sweep.start").label == "Start 6 runs"
    assert "--axis training.lr=0.001,0.005" in command(app)
    app = checked(app.selectbox(key="sweep.axis.0").set_value("lora.method").run())
    app = checked(app.multiselect(key="sweep.axis.0.lora.method").set_value(["lora", "dora"]).run())
    assert asked(app).axis("lora.method").values == ("lora", "dora")
    app = checked(app.button(key="sweep.remove.0").click().run())
    assert [axis.field for axis in asked(app).axes] == ["model", "lora.targets"]


def test_a_sampler_that_draws_takes_a_range_and_a_number_of_trials(visit, store):
    state = {"sweep.axes": [0], "sweep.axis.0.training.lr.low": "1e-4", "sweep.axis.0.training.lr.high": "1e-2"}
    app = visit(state=FORM | state | {"sweep.sampler": "tpe", "sweep.seeds": "0"})
    app = checked(app.checkbox(key="sweep.axis.0.training.lr.log").check().run())
    app = checked(app.text_input(key="sweep.trials").set_value("7").run())
    assert "tpe: tree-structured Parzen estimator" in words(app)
    assert "--axis training.lr=log:0.0001..0.01" in command(app) and "--sampler tpe --trials 7" in command(app)
    app = checked(app.button(key="sweep.start").click().run())
    (made,) = store.sweeps.all()
    assert sweep_spec.build(made.spec).trials == 7 and store.sweeps.runs(made.id) == ()
    assert "No setting has been sampled yet" in words(app)


def test_settings_that_could_only_fail_are_grouped_by_cause_and_can_be_left_out(visit, store):
    state = {"sweep.models": ["ast-mini", "efficientat-mini"], "sweep.targets": ["q_proj", "se"], "sweep.seeds": "0"}
    app = visit(state=FORM | state)
    said = words(app)
    assert said.count("**1 invalid combination**") == 2 and "ast-mini · se" in said
    assert app.button(key="sweep.start").disabled
    app = checked(app.checkbox(key="sweep.leave_out.2").check().run())
    assert app.button(key="sweep.start").label == "Start 2 runs" and command(app).endswith("--skip-invalid")
    checked(app.button(key="sweep.start").click().run())
    (made,) = store.sweeps.all()
    assert {run.title for run in store.sweeps.runs(made.id)} == {"ast-mini · q_proj", "efficientat-mini · se"}


def test_earlier_runs_tell_how_long_it_takes(visit, store):
    started(store, axes={"model": ["ast-mini"]}, seeds=[0])
    run = train_next(store)
    Ledger(store).ingest(run.id, _facts({"train_s": 50.0, "epochs": 10, "data": {"clips": {"train": 640}}}))
    app = visit(state=FORM)
    metrics = {metric.label: metric.value for metric in app.metric}
    assert metrics["Time"] != "–" and "have not been timed" not in words(app)


def _facts(facts):
    from sousa_engine.core.records import Progress
    from sousa_engine.workspace.spool import SpoolBatch

    done = Progress(phase="training", done=60, total=60)
    return SpoolBatch(start=1, end=2, points=[], facts=facts, progress=done)


def test_a_saved_target_set_is_offered_to_the_backbones_it_fits(visit, store):
    outline = targets.load_outline("ast-mini")
    paths = [node.path for node in outline.nodes if node.name in ("q_proj", "v_proj")]
    store.target_sets.save("mine", "ast-mini", paths, "train")
    label = "saved: mine (ast-mini)"
    app = visit(state=FORM)
    assert label in app.multiselect(key="sweep.targets").options
    app = checked(app.multiselect(key="sweep.targets").set_value(["core", label]).run())
    assert asked(app).axis("lora.targets").values == ("core", ["q_proj", "v_proj"])
    app = checked(app.multiselect(key="sweep.models").set_value(["efficientat-mini"]).run())
    assert app.button(key="sweep.start").disabled and "Nearest" in words(app)


def test_what_was_typed_is_still_there_after_a_visit_to_another_page(visit, store):
    app = visit(state=FORM)
    app = checked(app.button(key="sweep.add_axis").click().run())
    app = checked(app.text_input(key="sweep.axis.0.training.lr").set_value("1e-3, 5e-3").run())
    app = checked(app.text_input(key="sweep.seeds").set_value("4 5").run())
    before = asked(app)
    checked(app.switch_page(str(PAGES / "runs.py")).run())
    assert asked(checked(app.switch_page(str(PAGES / "sweeps.py")).run())) == before
    made = started(store)
    app.query_params["id"] = made.id
    assert checked(app.run()).title[0].value == made.name
    del app.query_params["id"]
    assert asked(checked(app.run())) == before


@pytest.mark.parametrize(
    "values",
    [
        GRID,
        {**GRID, "axes": {"model": ["ast-mini"], "targets": ["core", "late"]}, "sets": {"late": ["layers.3.mlp.fc1"]}},
        {**GRID, "name": "which rank", "axes": {"lora.r": [2, 4], "model": ["ast-mini"]}, "seeds": [3]},
        {**GRID, "axes": {"training.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "lora": ["attention", "probe"]},
         "sampler": "random", "trials": 3, "sampler_seed": 2},
        {**GRID, "axes": {"training.head_lr": {"low": 0.00010089882250230275, "high": 0.012345678901, "log": False},
                          "lora.alpha": [12.3456789012, 16]},
         "sampler": "random", "trials": 3, "base": {"data": {"dataset": "micro"},
                                                    "training": {"max_epochs": 2, "lr": 0.0012520653814999472}}},
        {**GRID, "axes": {"targets": ["core", ["q_proj", "v_proj"], []], "lora.r": [4]},
         "base": {"data": {"dataset": "micro"}, "training": {"max_epochs": 2, "lr": 1e-3, "batch_size": 8},
                  "lora": {"head": "train"}, "model": {"variant": "beats-mini"}}},
    ],
)  # fmt: skip
def test_a_clone_asks_for_the_same_sweep(visit, values):
    spec = sweep_spec.build(values)
    app = visit(state={handover.SWEEP_DRAFT: SweepDraft(spec=spec)})
    assert not app.error and canonical(asked(app)) == canonical(spec)


def canonical(spec):
    """Backbones and target sets stand first in the form; the order of axes means only the order of the trials."""
    return {**spec.model_dump(), "axes": sorted(spec.model_dump()["axes"], key=lambda axis: axis["field"])}


# Measuring


def test_measuring_is_started_once_and_then_the_time_is_known(visit, workspace, monkeypatch):
    started, locks = [], []

    def detached(command, *, log, lock):
        started.append(command)
        locks.append(os.dup(lock))
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(processes, "start_detached", detached)
    app = visit(state=FORM)
    app = checked(app.button(key="sweep.measure").click().run())
    assert app.get("progress")[0].proto.text == "Timing ..." and started[0][2] == "sousa_engine.runs.timing"
    asked_for = [RunConfig.model_validate(values) for values in json.loads(Path(started[0][4]).read_text())["configs"]]
    assert not timing.start(workspace, asked_for) and len(started) == 1
    with intake.taking_in(timing.folder(workspace), lock_fd=locks[0]) as tell:
        tell("ast-mini · default", 0, 3)
        app = checked(app.run())
        assert app.get("progress")[0].proto.text == "Timing ast-mini · default, 1 of 3 ..."
        paces = {timing.key(config): {"step_s": 2.0, "start_s": 5.0, "peak_memory_mib": 9.0} for config in asked_for}
        run_files.write_json(workspace.cache / "probes.json", paces)
    app = checked(app.run())
    assert "have not been timed" not in words(app)
    steps = preflight.preflight(asked_for[0], workspace).total_steps
    shown = {metric.label: metric.value for metric in app.metric}["Time"]
    assert shown == parts.duration(3 * (2.0 * steps + 5.0))


def test_a_probe_that_fails_is_a_sentence_and_can_be_tried_again(visit, workspace):
    with (
        contextlib.suppress(RunError),
        intake.taking_in(timing.folder(workspace)) as tell,
    ):
        tell("ast-mini · default", 0, 1)
        raise RunError("Timing ast-mini failed: out of memory.")
    app = visit(state=FORM)
    assert "Timing ast-mini failed: out of memory." in words(app)
    assert app.button(key="sweep.measure").label == "Estimate time (1 short test)" and not app.get("progress")


# An ablation


def test_an_ablation_fills_the_form_and_starts_nothing(visit, store):
    app = visit(state=FORM | {"sweep.axes": [0], "sweep.seeds": "5"})
    app = checked(app.button(key="sweep.ablate").click().run())
    spec = asked(app)
    assert store.sweeps.all() == () and not app.error
    assert spec.sets == sweep_plan.ablation("ast-mini", ["attention"]) and spec.seeds == (0, 1, 2)
    assert spec.axis("lora.targets").values == tuple(spec.sets) and spec.base["data"] == {"dataset": "micro"}
    assert "--ablate attention" in command(app) and "--targets" not in command(app)
    assert app.button(key="sweep.start").label == "Start 33 runs"
    app = checked(app.multiselect(key="sweep.targets").set_value(["all", "late layers"]).run())
    assert list(asked(app).sets) == ["all", "late layers"]
    checked(app.button(key="sweep.start").click().run())
    (made,) = store.sweeps.all()
    titles = [run.title for run in store.sweeps.runs(made.id)]
    assert titles == ["ast-mini · all"] * 3 + ["ast-mini · late layers"] * 3


# One sweep


def test_an_address_without_a_sweep_says_so_and_shows_the_form(visit):
    app = visit(id="nonsense", state=FORM)
    assert "No sweep has the id 'nonsense'" in words(app) and app.button(key="sweep.start")


def test_tiles_show_each_seed_its_numbers_and_why_one_was_given_up(visit, store):
    made = started(store, axes={"model": ["ast-mini", "beats-mini"], "targets": ["core", "default"]})
    train_next(store, reach=0.4)
    train_next(store, reach=0.6)
    train_next(store, reach=0.3)
    pruned = train_next(store, reach=0.1, epochs=1, status=RunStatus.RUNNING)
    Ledger(store).prune(pruned.id, 10, "Pruned after epoch 1 (step 10): too weak.")
    Ledger(store).finish(pruned.id, RunStatus.STOPPED, None, nonce="nonce")
    train_next(store, status=RunStatus.FAILED, reason="The loss became nan.")
    train_next(store, epochs=2, status=RunStatus.RUNNING)
    app = visit(id=made.id)
    found = tiles(app)
    assert [tile["state"] for tile in found] == ["finished", "pruned", "failed", "queued"]
    assert [tile["best"] for tile in found] == [True, False, False, False]
    first = found[0]
    assert (first["label"], first["test"], first["n"]) == ("ast-mini · core", "50.0 %", "2 seeds × 200 clips")
    assert first["valid"] == "43.8 %" and len(first["sparklines"]) == 2
    assert first["sparklines"][0] == [167, 200, 333, 300, 500, 350], "three of six epochs"
    assert (
        found[1]["note"] == "Pruned after epoch 1 (step 10): too weak." and found[2]["note"] == "The loss became nan."
    )
    assert [status for _, _, status in found[1]["runs"]] == ["finished", "pruned"]
    bar = app.get("progress")[0].proto.text
    for said in ("5 of 8 runs done", "1 running", "2 queued", "3 finished", "1 pruned", "1 failed", "left"):
        assert said in bar
    app.segmented_control(key="sweep.order").set_value("best first")
    assert [tile["trial"] for tile in tiles(checked(app.run()))] == [0, 2, 1, 3]


def test_a_tile_with_a_failed_and_a_pruned_seed_says_why_it_failed(visit, store):
    made = started(store, axes={"model": ["ast-mini"]})
    pruned = train_next(store, epochs=1, status=RunStatus.RUNNING)
    Ledger(store).prune(pruned.id, 10, "Pruned after epoch 1 (step 10): too weak.")
    Ledger(store).finish(pruned.id, RunStatus.STOPPED, None, nonce="nonce")
    train_next(store, status=RunStatus.FAILED, reason="The loss became nan.")
    (tile,) = tiles(visit(id=made.id))
    assert (tile["state"], tile["note"]) == ("failed", "The loss became nan.")


def test_all_tiles_ticked_beyond_what_compare_picks_name_the_whole_sweep(visit, store, monkeypatch):
    made = started(store, axes={"lora.r": [1, 2, 3]}, seeds=[0])
    monkeypatch.setattr(parts, "MOST_COMPARED", 2)
    app = visit(id=made.id)
    app.session_state[f"tiles-{made.id}"] = {"ticked": [0, 1, 2]}
    app = checked(app.run())
    compare = app.button(key="sweep.compare")
    assert compare.disabled and compare.help == "You ticked 3; Compare takes up to 2 runs, or the whole sweep."
    links = {link.proto.label: link.proto for link in app.get("page_link")}
    assert f"sweep={made.id}" in links[":primary[Compare the whole sweep]"].query_string


def test_ticked_tiles_go_to_compare_with_as_many_whole_rounds_of_seeds_as_fit(visit, store, monkeypatch):
    made = started(store, axes={"model": ["ast-mini"], "lora.r": [1, 2, 3]}, seeds=[0, 1, 2])
    monkeypatch.setattr(parts, "MOST_COMPARED", 8)
    runs = store.sweeps.runs(made.id)
    app = visit(id=made.id)
    assert app.button(key="sweep.compare").disabled
    app.session_state[f"tiles-{made.id}"] = {"ticked": [2, 0, 99, True]}
    app = checked(app.run())
    assert app.button(key="sweep.compare").label == "Compare ticked (6 runs)"
    app.session_state[f"tiles-{made.id}"] = {"ticked": [0, 1, 2]}
    app = checked(app.run())
    assert "the first 2 seeds of each" in app.button(key="sweep.compare").help
    app = checked(app.button(key="sweep.compare").click().run())
    assert app.title[0].value == "Compare"
    assert app.query_params["run"] == [run.id for run in runs if run.config.seed < 2]


def test_a_sweep_is_paused_resumed_and_stopped_after_a_second_press(visit, store):
    made = started(store)
    app = visit(id=made.id)
    app = checked(app.button(key="sweep.pause").click().run())
    assert store.sweeps.get(made.id).status is SweepStatus.PAUSED
    app = checked(app.button(key="sweep.resume").click().run())
    assert store.sweeps.get(made.id).status is SweepStatus.RUNNING
    app = checked(app.button(key="sweep.stop").click().run())
    assert store.sweeps.get(made.id).status is SweepStatus.STOPPED
    assert "Stopped by the user." in words(app)
    assert not [b for b in app.button if b.key in ("sweep.pause", "sweep.stop")]


def test_seeds_and_values_are_added_and_a_refusal_is_said_beside_the_field(visit, store):
    made = started(store)
    app = visit(id=made.id)
    app.text_input(key=f"sweep.seeds.{made.id}").set_value("1")
    app = checked(app.button(key="sweep.do.seeds").click().run())
    assert "lists one twice" in app.error[0].value and len(store.sweeps.runs(made.id)) == 4
    app.text_input(key=f"sweep.seeds.{made.id}").set_value("2, 3")
    app = checked(app.button(key="sweep.do.seeds").click().run())
    assert not app.error and len(store.sweeps.runs(made.id)) == 8
    app.selectbox(key=f"sweep.extend.{made.id}").set_value("lora.targets")
    app.text_input(key=f"sweep.extend.values.{made.id}").set_value("qproj")
    app = checked(app.button(key="sweep.do.extend").click().run())
    assert "Nearest" in app.error[0].value
    app.text_input(key=f"sweep.extend.values.{made.id}").set_value("all-linear")
    app = checked(app.button(key="sweep.do.extend").click().run())
    assert len(store.sweeps.runs(made.id)) == 16 and len(tiles(app)) == 4


def test_trials_are_added_to_a_sweep_that_draws(visit, store):
    made = started(store, axes={"training.lr": {"low": 1e-4, "high": 1e-2}}, sampler="random", trials=2, seeds=[0])
    app = visit(id=made.id)
    app.text_input(key=f"sweep.more.{made.id}").set_value("3")
    app = checked(app.button(key="sweep.do.more").click().run())
    assert len(tiles(app)) == 5


def test_runs_that_failed_for_one_reason_are_trained_again_as_they_were_or_with_other_targets(visit, store):
    made = started(store, axes={"model": ["ast-mini"], "lora.r": [2, 4]})
    reason = "'query' matches nothing in ast-mini. Nearest: q_proj, k_proj."
    for _ in range(3):
        train_next(store, status=RunStatus.FAILED, reason=reason)
    app = visit(id=made.id)
    assert "3 runs failed" in words(app) and "3 runs, same cause" in words(app) and reason in words(app)
    (field,) = [t for t in app.text_input if t.label == "Other targets"]
    assert field.value == "q_proj,k_proj" and "8 modules in ast-mini" in words(app)
    app = checked(field.set_value("qqq").run())
    (again,) = [b for b in app.button if b.label == "Re-run these 3 with these targets"]
    assert again.disabled and "Nearest" in words(app)
    app = checked(next(t for t in app.text_input if t.label == "Other targets").set_value("v_proj").run())
    app = checked(next(b for b in app.button if b.label == "Re-run these 3 with these targets").click().run())
    runs = store.sweeps.runs(made.id)
    assert [run.status.value for run in runs].count("queued") == 4 and "runs failed" not in words(app)
    assert {run.config.lora.targets[0].path.rpartition(".")[2] for run in runs if run.title.endswith("v_proj")} == {
        "v_proj"
    }
    train_next(store, status=RunStatus.FAILED, reason="The disk was full.")
    app = checked(app.run())
    checked(next(b for b in app.button if b.label == "Re-run it").click().run())
    assert [run.status.value for run in store.sweeps.runs(made.id)].count("queued") == 4


def test_clone_fills_the_form_and_leaves_the_sweep(visit, store):
    made = started(store, name="which set")
    app = visit(id=made.id)
    app = checked(app.button(key="sweep.clone").click().run())
    assert "id" not in app.query_params and asked(app).name == "which set, again"
    assert asked(app).axes == sweep_spec.build(made.spec).axes


# Its life


def test_a_sweep_is_renamed_archived_and_deleted_after_a_typed_word(visit, store):
    made = started(store)
    app = visit(id=made.id)
    assert not [b for b in app.button if b.key in ("sweep.archive", "sweep.delete")], "it has not ended"
    app.text_input(key=f"sweep.name.{made.id}").set_value("which backbone")
    app.text_area(key=f"sweep.note.{made.id}").set_value("for the talk")
    app = checked(app.button(key="sweep.edit.save").click().run())
    assert app.title[0].value == "which backbone" and "for the talk" in words(app)
    sweep_orders.stop(store, made.id)
    app = checked(visit(id=made.id).button(key="sweep.archive").click().run())
    assert store.sweeps.get(made.id).archived_at_ms and "archived" in words(visit(id=made.id))
    app = checked(visit(id=made.id).button(key="sweep.delete").click().run())
    assert "**which backbone** and its 4 runs" in words(app) and app.button(key="sweep.delete.now").disabled
    app = checked(app.button(key="sweep.delete.cancel").click().run())
    app = checked(app.button(key="sweep.delete").click().run())
    app = checked(app.text_input(key="sweep.delete.word").set_value("delete 4").run())
    app = checked(app.button(key="sweep.delete.now").click().run())
    assert store.sweeps.all() == () and store.runs.all() == ()


def test_archived_sweeps_are_listed_apart(visit, store):
    for name in ("kept", "hidden"):
        made = started(store, name=name)
        sweep_orders.stop(store, made.id)
    store.sweeps.archive([made.id])

    def names(app):
        return [link.proto.label for link in app.get("page_link")]

    app = visit()
    assert ":primary[kept]" in names(app) and ":primary[hidden]" not in names(app)
    app = checked(next(t for t in app.toggle if t.key == "sweeps.archived").set_value(True).run())
    assert ":primary[kept]" not in names(app) and ":primary[hidden]" in names(app)


def test_a_definition_that_cannot_be_read_is_said_and_the_sweep_can_be_deleted(visit, store):
    odd = store.sweeps.add("odd", {"axes": [], "sampler": "grid", "of_next_year": 1}, (), created_by="test")
    store.sweeps.set_status(odd.id, SweepStatus.STOPPED, leaving=[SweepStatus.RUNNING])
    app = visit(id=odd.id)
    assert "cannot be read: A sweep has no field" in app.error[0].value
    assert app.button(key="sweep.delete") and "odd" in words(app)


# Ways to it


def test_the_list_tells_status_runs_and_the_best_setting_so_far(visit, store):
    made = started(store)
    train_next(store, reach=0.4)
    train_next(store, reach=0.6)
    said = words(visit(state=FORM))
    assert "2 of 4 runs done" in said and "running" in said
    assert "best by valid: ast-mini · core, test 50.0 %, mean of 2 seeds" in said
    links = [link.proto.label for link in visit(state=FORM).get("page_link")]
    assert f":primary[{made.name}]" in links


def test_the_home_page_and_the_page_of_a_run_lead_to_the_sweep(visit, store):
    made = started(store)
    assert f":primary[{made.name}]" in [link.proto.label for link in visit("home").get("page_link")]
    run = store.sweeps.runs(made.id)[2]
    links = {link.proto.label: link.proto for link in visit("run", id=run.id).get("page_link")}
    assert f"id={made.id}" in links[f":primary[Part of sweep {made.name}, trial 1]"].query_string


# What the browser is given


def test_a_long_curve_is_thinned_to_its_newest_point_and_keeps_its_gaps(store):
    started(store, axes={"model": ["ast-mini"]}, seeds=[0], base={**BASE, "training": {"max_epochs": 100}})
    runs = store.runs.all()
    rows = trial_rows(runs, {})
    steps = tuple(range(10, 610, 10))
    values = tuple(None if step == 600 - 30 else step / 1000 for step in steps)
    curve = Curve(metric="valid/accuracy", width=1, steps=steps, mean=values, low=values, high=values)
    data = tiles_data(rows, {runs[0].id: curve})
    (line,) = data["tiles"][0]["sparklines"]
    assert len(line) <= 2 * MOST_POINTS and line[-2:] == [600, 600] and None in line[1::2]
    assert data["top"] == 600 and line[::2] == sorted(line[::2])
    json.dumps(data)


def test_three_hundred_trials_are_one_component_with_a_tile_each(visit, store):
    rates = [number / 1000 for number in range(1, 11)]
    made = started(store, axes={"lora.r": list(range(1, 31)), "training.lr": rates}, seeds=[0])
    for _ in range(3):
        train_next(store)
    found = tiles(visit(id=made.id))
    assert [tile["trial"] for tile in found] == list(range(300))
    assert len({tile["label"] for tile in found}) == 300


def test_a_name_that_a_run_cannot_hold_is_cut_and_the_run_can_still_be_read(store):
    outline = targets.load_outline("ast-mini")
    paths = list(targets.recommended_sets(outline)["attention"])
    made = started(store, axes={"targets": [paths, "q_proj"]}, seeds=[0])
    names = [run.title for run in store.sweeps.runs(made.id)]
    assert len(names[0]) == 120 and names[0].endswith("…") and names[1] == "q_proj"


def draft_of(app):
    found = app.query_params.get("draft", "")
    return found if isinstance(found, str) else found[0]


def test_a_form_that_was_not_touched_leaves_the_address_alone(visit):
    app = visit()
    assert draft_of(app) == "" and app.button(key="sweep.reset").disabled


def test_what_was_typed_is_in_the_address_and_fills_the_form_again(visit):
    typed = {
        "sweep.models": ["beats-mini"], "sweep.targets": ["core", "q_proj,v_proj"], "sweep.sampler": "random",
        "sweep.lr": "abc", "sweep.lines": "lora.r=4\n{", "sweep.seeds": "0 x", "sweep.axes": [3],
        "sweep.axis.3": "training.lr", "sweep.axis.3.training.lr.as": "range", "sweep.axis.3.training.lr.low": "1e-4",
        "sweep.axis.3.training.lr.high": "", "sweep.axis.3.training.lr.log": False,
    }  # fmt: skip
    app = visit(state=typed)
    found = draft_of(app)
    app = checked(app.button(key="sweep.reset").click().run())
    assert draft_of(app) == "" and app.session_state["sweep.lr"] == ""
    for name in ("known addresses", "visits to forms", "current visits to forms"):  # as in a new session
        del app.session_state[name]
    app = visit(draft=found)
    assert {name: app.session_state[name] for name in typed} == typed
    assert draft_of(app).partition(".")[0] == found.partition(".")[0] and not app.warning


def test_values_of_a_link_that_do_not_fit_the_form_are_left_out_and_named(visit):
    bad = {
        "name": 5, "models": ["ast-mini", "none"], "targets": "core", "sets": {"a": 1}, "sampler": "best",
        "trials": [3], "data": "elsewhere", "batch_size": [], "seeds": "1 2", "axes": [0, 1, "x", -4, 10**9],
        "axis.0": "no.field", "axis.1": "lora.method", "axis.1.lora.method": ["lora", "magic"],
    }  # fmt: skip
    app = visit(draft=drafts.pack(bad))
    said = app.warning[0].value.replace("\\", "")
    for value in ("none", "elsewhere", "best", "no.field", "magic"):
        assert value in said, value
    assert app.session_state["sweep.seeds"] == "1 2" and app.session_state["sweep.axes"] == [1]
