"""The command line: every verb helps, a mistake costs exit code 2 and one line that says how to fix it."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from seeding import Training

from sousa_engine.cli import main as cli
from sousa_engine.cli.main import main
from sousa_engine.cli.progress import epoch_lines
from sousa_engine.cli.runs import metric_text
from sousa_engine.core import sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import ConfigError
from sousa_engine.core.records import RunStatus, Summary
from sousa_engine.data import manifest
from sousa_engine.runs import ensure, prepare
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.store.runs import Runs
from sousa_engine.training import checkpoint
from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def sousa(workspace, monkeypatch):
    """Call the command line on an empty workspace; no supervisor is started."""
    monkeypatch.setattr(ensure, "ensure", lambda workspace: None)

    def call(*words: str):
        return CliRunner().invoke(main, ["--workspace", str(workspace.root), *words])

    return call


@pytest.mark.parametrize("command", [None, *main.commands])
def test_every_command_has_help(sousa, command):
    result = sousa(*filter(None, [command, "--help"]))
    assert result.exit_code == 0 and "Usage:" in result.output


@pytest.mark.parametrize("command", main.commands)
def test_readme_shows_every_command(command):
    assert re.search(rf"python -m sousa_engine {command}\b", README.read_text())


@pytest.mark.parametrize("page", [README, README.parent / "benchmarks" / "RESULTS.md"], ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    linked = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text())
    places = [(page.parent / name if name else page, anchor) for name, anchor in linked]
    assert places and [str(file) for file, _ in places if not file.exists()] == []
    assert [anchor for file, anchor in places if anchor and anchor not in anchors(file)] == []


def anchors(file: Path) -> set[str]:
    """The addresses that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_that_readme_names_for_developers_is_there():
    section = README.read_text().partition("## For developers")[2]
    named = set(re.findall(r"`([\w./]+(?:\.py|/))`", section))
    roots = (README.parent, README.parent / "sousa_engine", README.parent / "sousa_engine" / "runs" / "executors")
    assert len(named) > 20 and [name for name in named if not any((root / name).exists() for root in roots)] == []


def test_library_example_of_readme_works():
    example = re.search(r"```python\n(.+?)```", README.read_text(), re.DOTALL)[1]
    lines = [line for line in example.splitlines() if "load_official" not in line]  # needs the published file
    assert "from sousa_engine import backbones, frontends" in lines and len(lines) > 4
    names = {}
    exec("\n".join(["import torch", "waveforms = torch.zeros(1, 32000)", *lines]), names)
    assert names["logits"].shape == (1, 40)


def test_train_help_lists_presets_and_fields(sousa):
    text = sousa("train", "--help").output
    assert "training=quick" in text and "training.max_epochs" in text and "lora.r" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "model=astt-mini"], "ast-mini"),
        (["train", "training.max_epoch=3"], "training.max_epochs"),
        (["train", "data=tinny"], "tiny"),
        (["train", "data=micro", "lora.r=0"], "lora.r"),
        (["train", "data=micro", "training.lr=-1"], "training.lr"),
        (["train", "data=micro", "lora.targets=[querry]"], "q_proj"),
        (["train", "data=micro", "device=cuda:9"], "cpu"),
        (["train", "data=/no/such/folder"], "/no/such/folder"),
        (["train", "data=micro", "model.weights=/no/such/file.pth"], "/no/such/file.pth"),
        (["targets", "ast", "query,valeu"], "v_proj"),
        (["modules", "asd"], "ast"),
        (["modules", "ast", "--grep", "("], "regular expression"),
        (["modules", "ast", "--grep", "nothinglikeit"], "nothinglikeit"),
        (["train", "data="], "data="),
        (["train", "mdoel=ast-mini"], "model"),
        (["targets", "ast", ""], "query,key,value"),
        (["modules"], "BACKBONE"),
        (["modles", "ast"], "modules"),
        (["train", "data=micro", "training.max_epochs=abc"], "whole number"),
        (["show", "nope"], "nope"),
        (["stop", "nope"], "nope"),
    ],
)
def test_a_mistake_exits_2_with_one_line_that_names_the_value_and_a_fix(sousa, words, named):
    result = sousa(*words)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and named in lines[0]
    assert "Traceback" not in result.output


def test_a_full_disk_is_told(sousa, full_disk):
    result = sousa("runs")
    assert result.exit_code == 0 and "is full" in result.stderr


def test_a_mistyped_workspace_is_not_made(tmp_path):
    result = CliRunner().invoke(main, ["--workspace", str(tmp_path / "nope"), "runs"])
    assert result.exit_code == 2 and str(tmp_path / "nope") in result.stderr
    assert not (tmp_path / "nope").exists()


def test_files_that_cannot_be_used_are_told(sousa, tmp_path):
    for label in ("one", "two"):
        (tmp_path / "own" / label).mkdir(parents=True)
        for i in range(4):
            soundfile.write(tmp_path / "own" / label / f"{i}.wav", np.zeros(16_000), 16_000)
    (tmp_path / "own" / "one" / "broken.wav").write_text("no audio")
    result = sousa("train", f"data={tmp_path / 'own'}", "--dry-run")
    assert result.exit_code == 0 and "1 of 9 files is left out: one/broken.wav" in result.output


def test_dry_run_starts_nothing_and_prints_a_config_that_loads(sousa, workspace, tmp_path):
    result = sousa("train", "data=micro", "seed=9", "--dry-run")
    assert result.exit_code == 0 and "seed: 9" in result.output
    with Store.open(workspace) as store:
        assert store.runs.all() == ()


def test_detach_queues_and_returns(sousa, workspace):
    result = sousa("train", "data=micro", "seed=9", "--detach")
    assert result.exit_code == 0
    with Store.open(workspace) as store:
        (run,) = store.runs.all()
    assert run.id in result.output and run.status is RunStatus.QUEUED
    assert run.id in sousa("runs").output
    shown = sousa("show", "last").output
    assert run.id in shown and "seed=9" in shown
    assert "stopped" in sousa("stop", run.id).output
    assert sousa("stop", run.id).exit_code == 2


def test_config_file_and_words_are_laid_over_one_another(sousa, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {dataset: micro}\nseed: 4\ntraining: {max_epochs: 3}\n")
    text = sousa("train", "--config", str(file), "training.max_epochs=5", "--dry-run").output
    assert "seed: 4" in text and "max_epochs: 5" in text


def test_a_config_file_that_is_none_is_a_mistake(sousa, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("just words")
    result = sousa("train", "--config", str(file))
    assert result.exit_code == 2 and "run.yaml" in result.stderr


def test_modules_lists_the_real_tree(sousa):
    result = sousa("modules", "ast", "--grep", "attention")
    assert result.exit_code == 0 and "attention.q_proj" in result.output
    assert "167 modules of ast-base" in sousa("modules", "ast").output


def test_targets_says_what_old_names_match_today(sousa):
    result = sousa("targets", "ast", "query,key,value")
    assert result.exit_code == 0
    assert "q_proj" in result.output and "36 modules" in result.output and "peft_target_modules:" in result.output


def test_targets_counts_the_golden_number(sousa):
    result = sousa("targets", "ast", "all-linear", "--r", "8", "--head", "lora")
    assert "1,333,568 trainable of 86,219,560" in result.output


def test_random_weights_are_labelled_in_the_list(sousa):
    sousa("train", "data=micro", "model.weights=random", "--detach")
    assert "random weights" in sousa("runs").output


def test_metric_text_says_its_n_and_interval():
    text = metric_text(Summary(metric="test/accuracy", last=0.5, last_step=9, best=0.5, best_step=9, n=200))
    assert "n=200" in text and "43.1% to 56.9%" in text


@pytest.fixture
def two(sousa, workspace):
    """Ids of two runs that are over, oldest first."""
    for seed in ("1", "2"):
        assert sousa("train", "data=micro", f"seed={seed}", "--detach").exit_code == 0
        assert sousa("stop", "last").exit_code == 0
    with Store.open(workspace) as store:
        return [run.id for run in store.runs.all(newest_first=False)]


def test_runs_are_tagged_noted_and_found(sousa, two):
    assert sousa("tag", two[0], "+best", "+paper").output == f"run {two[0]}: best, paper\n"
    assert sousa("tag", two[0], "-paper", "+hard", "-best").output == f"run {two[0]}: hard\n"
    assert sousa("tag", two[0], "-hard").output == f"run {two[0]}: no tags\n", "-h... is no call for help here"
    assert sousa("tag", two[0], "+best").exit_code == 0
    assert sousa("note", two[0], "loud room").output == "loud room\n" == sousa("note", two[0]).output
    for words in (["--tag", "best"], ["--search", "LOUD"], ["--search", "seed 1"]):
        listed = sousa("runs", *words).output
        assert two[0] in listed and two[1] not in listed and "+best" in listed
    assert "None of 2 runs matches" in sousa("runs", "--tag", "other").output
    shown = sousa("show", two[0]).output
    assert "best" in shown and "loud room" in shown
    assert sousa("note", two[0], "").output == f"run {two[0]}: no note\n"


def test_a_tag_needs_a_sign_and_a_sane_length(sousa, two):
    result = sousa("tag", two[0], "best")
    assert result.exit_code == 2 and "write +best to add this tag, or -best to remove it" in result.stderr
    assert sousa("tag", two[0], "+" + "x" * 41).exit_code == 2
    assert sousa("tag", "--help").exit_code == 0


def test_runs_are_listed_in_the_order_that_was_asked_for(sousa, two):
    def order(*words):
        return [line.split()[0] for line in sousa("runs", *words).output.splitlines()[1:]]

    assert order() == two[::-1] and order("--reverse") == two
    assert order("--sort", "title") == two and order("--sort", "title", "--reverse") == two[::-1]
    assert "1 of 2; --limit 2 shows all." in sousa("runs", "--limit", "1").output
    assert sousa("runs", "--sort", "size").exit_code == 2


def test_archived_runs_are_listed_apart(sousa, two):
    assert sousa("archive", two[0]).exit_code == 0
    assert two[0] not in sousa("runs").output and two[0] in sousa("runs", "--archived").output
    assert sousa("archive", "--undo", two[0]).exit_code == 0
    assert two[0] in sousa("runs").output


def test_delete_asks_first_and_a_script_must_say_yes(sousa, two, workspace):
    result = sousa("delete", two[0])
    assert result.exit_code == 2 and "add --yes" in result.stderr and two[0] in result.output
    assert sousa("delete", two[0], "nonsense", "--yes").exit_code == 2
    assert two[0] in sousa("runs").output
    assert sousa("delete", *two, two[0], "--yes").output.startswith("2 runs deleted: ")
    assert "No runs yet" in sousa("runs").output


def test_runs_says_where_folders_of_runs_are_and_runs_db_is_not(sousa, two, workspace):
    for run_id in two:
        workspace.run_dir(run_id).mkdir(parents=True, exist_ok=True)
        (workspace.run_dir(run_id) / "config.json").write_text("{}")
    workspace.db.unlink()
    said = sousa("runs").output
    assert "2 run folders" in said and "db rebuild" in said and "No runs yet" not in said


def test_a_run_that_waits_is_neither_archived_nor_deleted(sousa):
    assert sousa("train", "data=micro", "--detach").exit_code == 0
    for words in (["archive", "last"], ["delete", "last", "--yes"]):
        result = sousa(*words)
        assert result.exit_code == 2 and "Stop them first" in result.stderr


def test_resume_says_from_where_or_why_not(sousa, workspace):
    assert sousa("train", "data=micro", "--detach").exit_code == 0
    result = sousa("resume", "last", "--detach")
    assert result.exit_code == 2 and "only ended runs" in result.stderr
    assert sousa("stop", "last").exit_code == 0
    result = sousa("resume", "last", "--detach")
    assert result.exit_code == 2 and "no checkpoint" in result.stderr and "Launch a new run" in result.stderr
    with Store.open(workspace) as store:
        (run,) = store.runs.all()
    data = manifest.contents(manifest.open_dataset(run.config.data))
    told = {"epoch": 2, "best": None, "run": {"contents": data}}
    assert "It has no checkpoint" in sousa("show", "last").output
    checkpoint.save(workspace.run_dir(run.id) / "checkpoints", 7, {}, told)
    assert f"resume {run.id}  (from step 7, epoch 2)" in sousa("show", "last").output
    result = sousa("resume", "last", "--detach")
    assert result.exit_code == 0 and f"run {run.id} queued: continues from step 7, epoch 2" in result.output
    with Store.open(workspace) as store:
        assert [found.status for found in store.runs.all()] == [RunStatus.QUEUED]


_TRAIN = """
import signal, sys
from sousa_engine.runs import ensure
from sousa_engine.cli.main import main
from sousa_engine.cli.progress import epoch_lines
from sousa_engine.cli.runs import metric_text
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in a shell's background
ensure.ensure = ensure.revive = lambda workspace: False
main(["--workspace", sys.argv[1], "train", "data=micro"])
"""


@pytest.mark.process
def test_a_second_ctrl_c_ends_the_command_at_once_and_says_what_becomes_of_the_run(workspace):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-u", "-c", _TRAIN, str(workspace.root)], **pipes)
    assert process.stderr.readline() == "queued\n"  # it watches
    with Store.open(workspace) as store:
        run = Ledger(store).claim("cpu", "n")
        assert process.stderr.readline() == "starting\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "stopping\n"
        assert store.runs.get(run.id).status is RunStatus.STOPPING
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130
        assert told == f"Run {run.id} is still stopping in the background; it saves a checkpoint first.\n"


@pytest.mark.parametrize(
    ("arrives", "told"), [(False, "continues in the background. To stop it: "), (True, "has already ended: stopped.")]
)
def test_what_is_said_of_a_run_after_ctrl_c_is_true_even_if_the_stop_was_cut_short(sousa, monkeypatch, arrives, told):
    def interrupt(seconds):
        raise KeyboardInterrupt

    def cut_short(store, run_id):
        if arrives:
            ask(store, run_id)
        raise KeyboardInterrupt

    ask = Runs.request_stop
    monkeypatch.setattr(cli.time, "sleep", interrupt)
    monkeypatch.setattr(ensure, "revive", lambda workspace: False)
    monkeypatch.setattr(Runs, "request_stop", cut_short)
    result = sousa("train", "data=micro")
    assert result.exit_code == 130 and told in result.stderr and "Aborted" not in result.stderr


def test_ctrl_c_anywhere_else_is_130_and_a_sentence(sousa, monkeypatch):
    def interrupt(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare", interrupt)
    result = sousa("train", "data=micro")
    assert result.exit_code == 130 and result.stderr.startswith("Interrupted. ")


def test_a_workspace_that_can_only_be_read_is_read(sousa, workspace, monkeypatch):
    run = Training.begin(workspace).finish()
    before = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: False if mode == os.W_OK else before(path, mode))
    for words in (["runs"], ["show", "last"], ["queue"], ["sweeps"]):
        result = sousa(*words)
        assert result.exit_code == 0, result.output
    assert run.id in sousa("runs").output
    refused = sousa("train", "data=micro", "--detach")
    assert refused.exit_code == 1 and "is read-only" in refused.output + refused.stderr


def test_a_name_that_turns_text_around_is_refused(sousa):
    result = sousa("train", "data=micro", "name=a\u202eb", "--detach")
    assert result.exit_code == 2 and "U+202E" in result.output + result.stderr
    with pytest.raises(ConfigError, match=r"U\+202E"):
        sweep_spec.build({"name": "a\u202eb", "axes": {"lora.r": [4, 8]}})


@pytest.mark.parametrize("status", [RunStatus.STOPPED, RunStatus.FAILED, RunStatus.LOST])
def test_runs_and_show_say_how_far_a_run_came_before_it_ended(sousa, workspace, status):
    def progress() -> list[str]:
        listed = sousa("runs").output.splitlines()[1].split()[2]
        shown = next(line for line in sousa("show", "last").output.splitlines() if line.startswith("progress"))
        return [listed, shown.split()[1]]

    training = Training.begin(workspace)
    training.steps(160)
    assert progress() == ["160/380", "160/380"]
    training.end(status, "The test is over.")
    assert progress() == ["160/380", "160/380"]


def test_a_run_that_ended_before_its_first_step_names_the_phase_and_one_that_never_started_nothing(sousa, workspace):
    Training.begin(workspace, prepared=False).end(RunStatus.FAILED, "The network did not load.")
    assert sousa("runs").output.splitlines()[1].split()[1:4] == ["failed", "preparing", "-"]
    with Store.open(workspace) as store:
        store.runs.request_stop(store.runs.enqueue(RunConfig()).id)
    assert sousa("runs").output.splitlines()[1].split()[1:4] == ["stopped", "-", "-"]


def test_each_epoch_gets_its_line_once_and_a_resumed_run_only_its_new_ones(workspace):
    with Store.open(workspace) as store:
        run = store.runs.enqueue(RunConfig.model_validate({"training": {"max_epochs": 3}}))
        values = {"train/loss": [3.0, 1.0, 2.0, 4.0], "valid/loss": [None, 1.5, None, float("nan")]}
        values |= {"valid/accuracy": [None, 0.25, None, 0.5]}
        points = [
            SpoolPoint(name, step, value, (step + 1) // 2, 8, step)
            for name, series in values.items()
            for step, value in enumerate(series, start=1)
            if value is not None
        ]
        assert epoch_lines(store, run) == []
        Ledger(store).ingest(run.id, SpoolBatch(start=0, end=1, points=points))
        first, second = epoch_lines(store, run)
        assert first == "epoch 1/3  train loss 2.000  valid loss 1.500  valid accuracy 25.0 %"
        assert second == "epoch 2/3  train loss 3.000  valid accuracy 50.0 %"
        assert epoch_lines(store, run, skip=1) == [second] and epoch_lines(store, run, skip=2) == []


def test_the_command_sousa_is_this_command_line():
    scripts = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["sousa"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_a_run_that_cannot_be_read_is_shown_with_the_reason_and_every_verb_answers(sousa, workspace):
    good = Training.begin(workspace).finish()
    with Store.open(workspace) as store:
        odd = store.runs.enqueue(RunConfig()).id
        with store.connection.writing() as db:
            sql = "UPDATE runs SET config_json = json_set(config_json, '$.training.of_next_year', 1) WHERE id = ?"
            db.execute(sql, [odd])
    shown = sousa("show", odd)
    assert shown.exit_code == 0 and "of_next_year" in shown.output and "train again" not in shown.output
    for words in (["show", good.id], ["runs"], ["queue"], ["queue", "move", odd, "--to", "1"], ["tag", odd, "+odd"]):
        assert sousa(*words).exit_code == 0, words
    refused = sousa("clone", odd)
    assert refused.exit_code == 2 and "of_next_year" in refused.output
    checked = sousa("db", "check")
    assert checked.exit_code == 1 and odd in checked.output
    report = sousa("analyze")
    assert f"left out: run {odd}" in report.output and report.exit_code == 0
    assert sousa("stop", odd).exit_code == sousa("delete", odd, "--yes").exit_code == 0
    assert sousa("db", "check").exit_code == 0


def test_no_command_passes_the_escapes_of_a_log_an_event_or_a_reason_to_the_terminal(sousa, workspace):
    training = Training.begin(workspace)
    training.event("note", "\x1b]0;owned\x07an event\x9b2J")
    training.log("\x1b[2Ja line of the log\x1b]52;c;cm0=\x07")
    run = training.end(RunStatus.FAILED, "a reason\x1b[1A\x1b[2K\u202e")
    for words in (["show", run.id], ["runs"], ["show", "no\x1b[31msuch"]):
        output = sousa(*words).output
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", output), words
    shown = sousa("show", run.id).output
    assert all(text in shown for text in ("an event", "a line of the log", "a reason\\u202e"))
