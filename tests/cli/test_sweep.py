"""`sweep` and `sweeps` on the command line: what is typed becomes a sweep, mistakes cost exit code 2 and one line."""

import shlex

import pytest
from click.testing import CliRunner

from sousa_engine.cli import sweep as sweep_cli
from sousa_engine.cli.main import main
from sousa_engine.core import sweep_spec
from sousa_engine.core.errors import ConfigError, UserError
from sousa_engine.core.records import RunStatus, SweepStatus
from sousa_engine.runs import ensure, prepare, sweep_plan, sweep_words
from sousa_engine.store.ledger import Ledger

MINIS = ("sweep", "--data", "micro", "--max-epochs", "1", "--models", "ast-mini", "beats-mini", "--seeds", "0", "1")


@pytest.fixture
def sousa(workspace, monkeypatch):
    """Call the command line on an empty workspace; no supervisor is started."""
    monkeypatch.setattr(ensure, "ensure", lambda workspace: None)

    def call(*words, code=0):
        result = CliRunner().invoke(main, ["--workspace", str(workspace.root), *words])
        assert result.exit_code == code, result.output
        return result.output

    return call


def end_all(store, status=RunStatus.FINISHED, reason=None):
    while run := Ledger(store).claim("cpu", "n"):
        Ledger(store).mark_running(run.id, "n", started_at_ms=1)
        Ledger(store).finish(run.id, status, reason, nonce="n")


def test_names_after_an_option_are_all_its_own(sousa, store):
    said = sousa(*MINIS, "--targets", "core", "q_proj,v_proj", "lora.r=4", "--detach")
    assert "model × targets: grid, 2 seeds, 8 runs" in said and "sweeps show" in said
    (made,) = store.sweeps.all()
    spec = sweep_spec.build(made.spec)
    assert [axis.values for axis in spec.axes] == [("ast-mini", "beats-mini"), ("core", ["q_proj", "v_proj"])]
    assert spec.base == {
        "data": {"dataset": "micro"}, "training": {"max_epochs": 1}, "lora": {"r": 4},
    }  # fmt: skip
    runs = store.sweeps.runs(made.id)
    assert len(runs) == 8 and all(run.config.lora.r == 4 and run.config.training.max_epochs == 1 for run in runs)


def test_a_sweep_continues_after_ctrl_c_which_exits_130(sousa, store, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_cli.time, "sleep", interrupt)
    said = sousa(*MINIS, code=130)
    (made,) = store.sweeps.all()
    assert f"Sweep {made.id} continues in the background. To stop it: " in said and made.status is SweepStatus.RUNNING


def test_a_dry_run_prints_the_sweep_as_yaml_that_starts_the_same(sousa, store, tmp_path):
    said = sousa(*MINIS, "--axis", "training.lr=1e-3,5e-3", "--dry-run")
    assert "8 runs" in said and store.sweeps.all() == ()
    file = tmp_path / "sweep.yaml"
    file.write_text(said[said.index("axes:") :])
    sousa("sweep", "--config", str(file), "--seeds", "0,1", "--detach")
    assert len(store.sweeps.runs(store.sweeps.find("last").id)) == 8
    shown = sousa("sweeps", "show", "last", "--yaml")
    assert sweep_spec.build(sweep_spec.yaml.safe_load(shown)) == sweep_spec.build(store.sweeps.find("last").spec)


def test_the_missing_weights_of_each_family_are_named_with_their_mini_and_the_import(sousa, store):
    said = sousa("sweep", "--data", "micro", "--models", "ast", "efficientat", "htsat", "beats", code=2)
    for family in ("ast", "efficientat", "htsat", "beats"):
        assert f"another backbone (model={family}-mini, whose weights are embedded)" in said
    assert said.count("weights import FILE") == 4 and store.sweeps.all() == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "A sweep must vary something: add --models, --targets, --ablate or --axis"),
        (("--axis", "training.rl=1,2"), "Nearest: training.lr"),
        (("--axis", "training.lr=1e-3..1e-2"), "A grid needs listed values for training.lr"),
        (("--models", "ast-mini", "--sampler", "tpe"), "Set how many trials tpe samples"),
        (("--models", "ast-mni"), "Nearest: ast-mini"),
        (("--models", "ast-mini", "--targets", "qproj"), "Nearest"),
        (("--models", "ast-mini", "--seeds", "1", "1"), "lists one twice"),
        (("--models", "ast-mini", "--seeds", "3000000000"), "seed must be at most 2,147,483,647"),
        (("--axis", "lora.r=1..3", "--sampler", "random", "--trials", "5"), "there are only 3 combinations"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_code_2(sousa, words, message):
    said = sousa("sweep", *words, code=2)
    assert message in said and "Traceback" not in said


def test_invalid_combinations_can_be_left_out(sousa, store):
    words = ("sweep", "--data", "micro", "--models", "ast-mini", "efficientat-mini", "--targets", "q_proj", "se")
    said = sousa(*words, code=2)
    assert "ast-mini · se" in said and "efficientat-mini · q_proj" in said
    sousa(*words, "--skip-invalid", "--detach")
    names = {run.title for run in store.sweeps.runs(store.sweeps.find("last").id)}
    assert names == {"ast-mini · q_proj", "efficientat-mini · se"}


def test_a_sweep_is_paused_resumed_and_stopped(sousa, store):
    sousa(*MINIS, "--detach")
    assert "is not paused: running" in sousa("sweeps", "resume", "last", code=2)
    sousa("sweeps", "pause", "last")
    assert store.sweeps.find("last").status is SweepStatus.PAUSED
    assert "paused" in sousa("sweeps")
    sousa("sweeps", "resume", "last")
    sousa("sweeps", "stop", "last")
    assert "has already ended: stopped" in sousa("sweeps", "stop", "last", code=2)
    assert "4 stopped" not in sousa("sweeps", "show", "last") and "2 stopped" in sousa("sweeps", "show", "last")


def test_failed_runs_are_shown_by_cause_and_trained_again(sousa, store):
    sousa(*MINIS, "--detach")
    end_all(store, RunStatus.FAILED, "Out of memory at step 7.")
    said = sousa("sweeps", "show", "last")
    assert "4 runs failed, same cause: Out of memory at step 7." in said and "rerun-failed" in said
    assert "4 runs queued" in sousa("sweeps", "rerun-failed", "last", "--targets", "core")
    assert "failed, same cause" not in sousa("sweeps", "show", "last")
    assert "No run of sweep" in sousa("sweeps", "rerun-failed", "last", code=2)


def test_seeds_and_values_are_added_to_a_sweep(sousa, store):
    sousa(*MINIS, "--targets", "core", "--detach")
    assert "2 runs queued: ast-mini · core, beats-mini · core." in sousa("sweeps", "add-seeds", "last", "5")
    assert "6 runs queued: ast-mini · default, beats-mini · default." in sousa(
        "sweeps", "extend", "last", "targets=default"
    )
    assert "a grid needs listed values" in sousa("sweeps", "extend", "last", "training.lr=1..2", code=2)
    assert "A grid already has all its combinations" in sousa("sweeps", "add-trials", "last", "3", code=2)


def test_a_sweep_is_renamed_noted_archived_and_deleted(sousa, store):
    sousa(*MINIS, "--detach")
    made = store.sweeps.find("last")
    assert f"{made.id}: which backbone" in sousa("sweeps", "rename", "last", "which backbone")
    assert "no note" in sousa("sweeps", "note", "which backbone")
    sousa("sweeps", "note", "last", "for the talk")
    assert "for the talk" in sousa("sweeps", "note", "last") and "note: for the talk" in sousa("sweeps", "show", "last")
    for verb in ("archive", "delete"):
        assert "is running. Stop it first" in sousa("sweeps", verb, "last", *["--yes"] * (verb == "delete"), code=2)
    sousa("sweeps", "stop", "last")
    assert "1 sweep archived" in sousa("sweeps", "archive", "last")
    assert "All sweeps are archived" in sousa("sweeps")
    assert "which backbone" in sousa("sweeps", "--archived") and "None of 4 runs" in sousa("runs")
    sousa("sweeps", "archive", "last", "--undo")
    assert "which backbone" in sousa("sweeps") and made.id not in sousa("sweeps", "--archived")
    assert "No terminal to confirm: add --yes" in sousa("sweeps", "delete", "last", code=2)
    assert "1 sweep with 4 runs deleted" in sousa("sweeps", "delete", "last", "--yes")
    assert store.sweeps.all() == () and store.runs.all() == ()


def test_a_sweep_that_cannot_be_read_is_listed_as_such_and_can_be_deleted(sousa, store):
    sousa(*MINIS, "--detach")
    spec = {"axes": [], "sampler": "tpe", "of_next_year": 1}
    odd = store.sweeps.add("of next year", spec, (), created_by="test")
    said = sousa("sweeps")
    assert "of next year  (cannot be read: A sweep has no field 'of_next_year'" in said and "0/4" in said
    sousa("sweeps", "stop", odd.id)
    sousa("sweeps", "delete", odd.id, "--yes")
    assert len(store.sweeps.all()) == 1


def test_a_run_that_was_trained_before_is_named(sousa, store):
    run = store.runs.enqueue(prepare.prepare({"data": {"dataset": "micro"}, "seed": 4}).config)
    words = ("train", "data=micro", "lora.target_set=mine", "--dry-run")
    assert "trained this already" not in sousa(*words, "seed=4"), "it has not finished"
    end_all(store)
    assert f"run {run.id} has trained this already" in sousa(*words, "seed=4")
    assert "trained this already" not in sousa(*words, "seed=5")


@pytest.mark.parametrize(
    "values",
    [
        {"axes": {"model": ["ast-mini", "beats-mini"], "targets": ["core", ["q_proj", "v_proj"]]}},
        {"axes": {"targets": ["core"], "model": ["ast-mini"]}, "seeds": [4]},
        {"axes": {"targets": [["qkv"], [], "core"]}, "name": "one name, and none"},
        {"axes": {"lora.method": ["lora", "dora"], "data.clip_s": [None, 1.5], "targets": ["attention+mlp"]}},
        {"axes": {"model": ["beats-mini"], "targets": list(sweep_plan.ablation("beats-mini", ["core"]))},
         "sets": sweep_plan.ablation("beats-mini", ["core"])},
        {"axes": {"targets": ["late layers", "core", "all"], "lora.r": [2, 4]},
         "base": {"model": {"variant": "ast-mini"}},
         "sets": {name: sweep_plan.ablation("ast-mini", ["q_proj", "fc1"])[name] for name in ("all", "late layers")}},
        {"axes": {"training.lr": {"low": 1e-5, "high": 1e-2, "log": True}, "lora.r": {"low": 4, "high": 64}},
         "sampler": "tpe", "trials": 9, "sampler_seed": 3},
        {"axes": {"model": ["ast-mini"]}, "base": {"data": {"dataset": "/a folder", "split_seed": 2},
         "training": {"max_epochs": 3, "lr": 1e-05}, "lora": {"targets": ["q_proj", "v_proj"]}, "device": "cpu"}},
    ],
)  # fmt: skip
def test_the_command_of_a_sweep_starts_an_equal_one(sousa, monkeypatch, values):
    spec, seen = sweep_spec.build(values), []

    def plan(asked, workspace):
        seen.append(asked)
        raise UserError("The test has seen enough.")

    monkeypatch.setattr(sweep_plan, "plan", plan)
    words = shlex.split(sweep_words.to_command(spec, skip_invalid=True))
    assert words[:3] == ["python", "-m", "sousa_engine"] and words[-1] == "--skip-invalid"
    assert "seen enough" in sousa(*words[3:], code=2)
    assert seen == [spec]


def test_an_ablation_is_shown_and_its_yaml_starts_the_same(sousa, store, tmp_path):
    words = ("sweep", "--data", "micro", "--models", "ast-mini", "--ablate", "core", "--dry-run")
    said = sousa(*words)
    assert "model × targets: grid, 3 seeds, 33 runs" in said and store.sweeps.all() == ()
    file = tmp_path / "sweep.yaml"
    file.write_text(said[said.index("axes:") :])
    spec = sweep_spec.read(file)
    assert spec.sets == sweep_plan.ablation("ast-mini", ["core"])
    assert spec.axis("lora.targets").values[:3] == ("all", "without attention.query", "without attention.key")
    fewer = sousa("sweep", "--file", str(file), "--targets", "all", "late layers", "--seeds", "0", "--detach")
    assert "2 runs" in fewer
    (made,) = store.sweeps.all()
    assert list(made.spec["sets"]) == ["all", "late layers"]
    runs = {run.title: run.config.lora for run in store.sweeps.runs(made.id)}
    late = runs["ast-mini · late layers"]
    assert late.target_set == "late layers" and {t.path.split(".")[-3] for t in late.targets} == {"2", "3"}
    assert len(runs["ast-mini · all"].targets) == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--models", "ast-mini", "beats-mini", "--ablate", "core"), "--ablate takes one backbone"),
        (("--models", "ast-mini", "--ablate", "corr"), "Nearest"),
        (("--models", "ast-mini", "--ablate", "layers.0.attention.q_proj"), "has no parts in ast-mini"),
    ],
)
def test_what_cannot_be_ablated_is_refused(sousa, words, message):
    assert message in sousa("sweep", *words, code=2)


def test_a_sweep_that_no_line_can_say_names_the_file_as_the_way():
    comma = sweep_spec.build({"axes": {"data.dataset": ["/one, two", "tiny"]}})
    assert sweep_words.read(shlex.split(sweep_words.to_command(comma))[4:]) == comma
    spec = sweep_spec.build({"axes": {"model": ["ast-mini", "x=y"]}})
    with pytest.raises(ConfigError, match=r"sweep --file FILE"):
        sweep_words.to_command(spec)
