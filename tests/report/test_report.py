"""Reports: what they say of a sweep, of runs, of nothing; each format holds it; the command line writes them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
import tomllib

import pytest
from click.testing import CliRunner
from seeding import CLASSES, Training, config, seed_sweep, train_next
from streamlit.testing.v1 import AppTest

from sousa_engine import report
from sousa_engine.analysis import baselines
from sousa_engine.analysis.significance import wilson
from sousa_engine.cli.main import main
from sousa_engine.core import sweep_spec
from sousa_engine.core.records import RunStatus
from sousa_engine.report import sections
from sousa_engine.report.figures import figures
from sousa_engine.runs import ensure, sweep_orders
from sousa_engine.store import Store
from sousa_engine.web import report_view
from sousa_engine.workspace import PROJECT_ROOT, Workspace, spool

NASTY = '<script>alert("1")</script> | *a* [b](http://c.d)'


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A workspace with a sweep of nine settings and two seeds, the last setting pruned."""
    workspace = Workspace(root=tmp_path_factory.mktemp("swept"))
    return workspace, seed_sweep(workspace, pruned=1)


@pytest.fixture(scope="module")
def found(swept):
    with Store.open(swept[0]) as store:
        return report.read(store, sweep=store.sweeps.find(swept[1]), made_at_ms=0)


@pytest.fixture
def store(workspace, monkeypatch):
    monkeypatch.setattr(ensure, "ensure", lambda workspace: None)
    with Store.open(workspace) as opened:
        yield opened


@pytest.fixture
def sousa(workspace):
    def call(*words, code=0):
        result = CliRunner().invoke(main, ["--workspace", str(workspace.root), "analyze", *map(str, words)])
        assert result.exit_code == code, result.output
        return result.output

    return call


def started(store, *, seeds=(0, 1), name="two backbones"):
    """A sweep of two settings with its runs queued."""
    values = {"name": name, "axes": {"model": ["ast-mini", "beats-mini"]}, "seeds": list(seeds),
              "base": {"data": {"dataset": "micro"}, "training": {"max_epochs": 3}}}  # fmt: skip
    return sweep_orders.start(store.workspace, sweep_spec.build(values), created_by="test")


def titles(found):
    return [section.title for section in sections.sections(found)]


def table(found, name):
    return next(t for section in sections.sections(found) for t in section.tables if t.name == name)


def csv_rows(found):
    return list(csv.DictReader(io.StringIO(report.csv(found))))


# What is said


def test_a_report_of_a_sweep_says_all_of_it_in_its_order(found):
    assert titles(found) == [
        "Settings", "Pairs of settings", "Runs", "2 runs pruned", "Valid accuracy over steps", "Accuracy against cost",
        "Rudiment groups", "Confusion", "What matters", "Definition", "How this was determined",
    ]  # fmt: skip
    text = report.markdown(found)
    assert "9 settings, 18 runs: 16 finished, 2 pruned." in text and "Created 1970-01-01 00:00 UTC" in text
    assert text.index("## Verdict") < text.index(found.conclusion.verdict) < text.index("## Settings")
    assert "Pruned at step 40: others were ahead." in text and "Functional ANOVA of 8 settings" in text


def test_settings_stand_by_valid_accuracy_and_what_was_not_measured_is_a_dash(found):
    rows = table(found, "Settings").rows
    assert len(rows) == 9 and rows[0][0] == found.best.label == found.rows[0].label
    assert rows[-1][0] == "r 16 · lr 0.008" and rows[-1][1:7] == ("–",) * 6 and rows[-1][-1] == "2 pruned"
    means = [row.mean_valid for row in found.rows]
    assert means == sorted(means, reverse=True)


def test_pruned_runs_take_no_part_in_the_verdict(found):
    assert "r 16 · lr 0.008" not in {name for pair in found.conclusion.pairs for name in (pair.first, pair.second)}
    assert len(found.shown) == 8 and len(found.conclusion.order) == 8


def test_every_run_is_a_line_of_the_csv_with_what_it_reached(found):
    rows = csv_rows(found)
    assert len(rows) == 18
    first = rows[0]
    assert (first["lora.r"], first["training.lr"], first["seed"], first["status"]) == ("4", "0.0005", "1", "finished")
    exact = wilson(round(float(first["test_accuracy"]) * 200), 200)
    assert (float(first["test_low"]), float(first["test_high"])) == (exact.low, exact.high)
    assert first["trainable_parameters"] == "63400" and first["peak_memory_mib"] == "812.4"
    pruned = [row for row in rows if row["status"] == "pruned"]
    assert [(row["test_accuracy"], row["pruned_at_step"]) for row in pruned] == [("", "40")] * 2, "missing, never 0"


def test_every_chart_that_is_named_can_be_drawn(found):
    names = [name for section in sections.sections(found) for name in section.charts]
    assert names == [
        "curves", "cost trainable", "cost train_s", "cost peak_memory_mib", "scores", "confusion", "difference",
        "importance", "parallel",
    ]  # fmt: skip
    charts = figures(found, names)
    assert all(chart.figure.data and chart.alt for chart in charts.values())
    assert len([trace for trace in charts["curves"].figure.data if trace.name]) == 8


def test_two_runs_are_compared_clip_by_clip_and_a_control_is_called_one(workspace, store):
    runs = [
        Training.begin(workspace, config(seed=1, weights=weights, max_epochs=1), reach=reach).finish()
        for weights, reach in (("pretrained", 0.7), ("random", 0.2))
    ]
    found = report.read(store, runs=runs)
    assert found.title == "2 runs" and found.sweep is None
    assert "One seed each" in found.conclusion.verdict
    text = report.markdown(found)
    assert "On the same 200 test clips" in text and "A run on random weights is a control" in text
    assert sum("(control: random weights)" in row[0] for row in table(found, "Settings").rows) == 1
    assert [row["weights"] for row in csv_rows(found)] == ["pretrained", "random"]


def test_a_single_run_is_reported_without_a_verdict_of_settings(workspace, store):
    run = Training.begin(workspace, config(seed=1, max_epochs=1, name="alone")).finish()
    found = report.read(store, runs=[run])
    assert found.title == "alone" and "fewer than two runs" in found.conclusion.verdict
    assert "Confusion" in titles(found) and "What matters" not in titles(found)
    assert "training.max_epochs: 1 (default: 10)" in report.markdown(found)


def test_a_sweep_where_all_failed_names_the_cause_once_and_the_cure(store):
    made = started(store)
    for _ in range(4):
        train_next(store, epochs=0, status=RunStatus.FAILED, reason=f"No module {_} named qv. Nearest: qkv.")
    found = report.read(store, sweep=store.sweeps.find(made.id))
    text = report.markdown(found)
    assert len(found.failures) == 1 and "4 runs, same cause: No module 0 named qv." in text
    assert f"sweeps rerun-failed {made.id} --targets qkv" in text and "## 4 runs failed" in text
    assert "No conclusion" in found.conclusion.verdict
    assert {"Confusion", "Accuracy against cost", "Valid accuracy over steps"}.isdisjoint(titles(found))
    assert {row["test_accuracy"] for row in csv_rows(found)} == {""}
    assert {row["status"] for row in csv_rows(found)} == {"failed"}
    assert "plotly.js v" not in report.html(found), "no chart, no library"


def test_a_sweep_that_still_runs_says_that_it_may_change(store):
    made = started(store)
    train_next(store)
    train_next(store, epochs=1, status=RunStatus.RUNNING)
    found = report.read(store, sweep=store.sweeps.find(made.id))
    assert found.open_count == 3
    assert "3 runs had not ended when this report was created" in report.markdown(found)
    assert [row["status"] for row in csv_rows(found)].count("queued") == 2


def test_a_sweep_without_a_finished_run_and_one_without_a_run_are_reports_too(store):
    found = report.read(store, sweep=store.sweeps.find(started(store).id))
    assert found.best is None and "No conclusion" in report.markdown(found)
    values = {"axes": {"training.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "sampler": "tpe", "trials": 3}
    drawn = store.sweeps.add("to come", sweep_spec.build(values).model_dump(mode="json"), (), created_by="test")
    empty = report.read(store, sweep=drawn)
    assert "No runs yet" in report.markdown(empty) and "9 to come" in report.html(empty)
    assert "0.0001 to 0.01, logarithmic" in report.markdown(empty) and csv_rows(empty) == []


def test_one_seed_each_makes_no_winner(store):
    made = started(store, seeds=(0,))
    train_next(store, reach=0.2)
    train_next(store, reach=0.9)
    found = report.read(store, sweep=store.sweeps.find(made.id))
    assert "One seed each: no conclusion" in found.conclusion.verdict and found.conclusion.pairs == ()


def test_baselines_stand_as_a_reference(found, swept):
    with Store.open(swept[0]) as store:
        one = report.Reference(title="Majority class", accuracy=wilson(5, 200), macro_f1=0.01, how="always flam")
        text = report.markdown(report.read(store, sweep=store.sweeps.find(swept[1]), baselines=[one]))
    assert "Majority class" in text and "always flam" in text and "Baselines" not in titles(found)


# Names are text


def test_names_are_text_in_every_format(workspace, store):
    names = (NASTY, "=1+1")
    runs = [
        Training.begin(workspace, config(seed=seed, max_epochs=1, name=name)).finish()
        for seed, name in enumerate(names)
    ]
    found = report.read(store, runs=runs)
    page = report.html(found)
    assert "<script>alert" not in page and "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;" in page
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    assert "<script" not in json.dumps(drawn), "plotly reads tags"
    text = report.markdown(found)
    assert r"\<script\>" in text and r"\| \*a\* \[b\](http" in text and not re.search(r"(?<!\\)<", text)
    assert {row["title"] for row in csv_rows(found)} == {NASTY, "'=1+1"}


def test_the_page_brings_everything_and_asks_for_nothing(found):
    page = report.html(found)
    own = page.replace(re.search(r"<script>(/\*\*.*?)</script>", page, re.DOTALL)[1], "")
    assert "://" not in own and "src=" not in own and "<link" not in own and "@import" not in own
    assert "default-src 'none'" in own and "connect-src" not in own
    assert len(own) < 1_500_000


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_page_has_the_colours_of_the_studio(mode):
    theme = tomllib.loads((PROJECT_ROOT / ".streamlit" / "config.toml").read_text())["theme"][mode]
    style = (PROJECT_ROOT / "sousa_engine" / "report" / "page.css").read_text()
    ours = style[style.index("dark)") if mode == "dark" else 0 :]
    found = dict(re.findall(r"--(\w+): (#\w+)", ours[: ours.index("}")]))
    names = {
        "paper": "backgroundColor", "panel": "secondaryBackgroundColor", "ink": "textColor", "petrol": "linkColor",
        "line": "borderColor", "grey": "grayColor", "green": "greenColor", "red": "redColor", "orange": "orangeColor",
        "blue": "blueColor",
    }  # fmt: skip
    assert found == {name: theme[key] for name, key in names.items()}


def test_reports_load_no_torch_and_no_streamlit():
    code = "import sys, sousa_engine.cli.analyze, sousa_engine.report\n"
    code += (
        "heavy = {'torch', 'streamlit', 'librosa', 'optuna', 'statsmodels'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# The command line


def test_analyze_prints_the_newest_sweep_and_writes_each_format(sousa, store, tmp_path):
    started(store, name="older")
    newest = started(store, seeds=(7,), name="newer")
    assert sousa().startswith("# newer\n")
    assert sousa("older").startswith("# older\n") and sousa(newest.id[-4:]).startswith("# newer\n")
    for name, begins in (("a.md", b"# newer"), ("a.csv", b"\xef\xbb\xbfid,title"), ("a.html", b"<!doctype html>")):
        assert str(tmp_path / name) in sousa("--out", tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begins)
    assert sousa("--format", "csv").startswith("id,title") and not list(tmp_path.glob(".a*"))


def test_analyze_takes_runs_or_all_that_are_not_archived(sousa, workspace, store):
    runs = [store.runs.enqueue(config(seed=seed)) for seed in range(3)]
    assert "3 runs" in sousa()
    assert "1 run: 1 queued" in sousa("--run", runs[0].id, "--run", runs[0].id[-4:])
    for _ in runs:
        train_next(store)
    store.marks.archive([runs[0].id])
    assert "2 runs: 2 finished" in sousa()


def test_a_file_is_not_written_over_unless_forced(sousa, store, tmp_path):
    started(store)
    (tmp_path / "a.md").write_text("mine")
    assert "already exists" in sousa("--out", tmp_path / "a.md", code=2)
    assert (tmp_path / "a.md").read_text() == "mine"
    sousa("--out", tmp_path / "a.md", "--force")
    assert (tmp_path / "a.md").read_text().startswith("# two backbones")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("two backbonse",), "Nearest: two backbones"),
        (("--run", "nonsense"), "No run named 'nonsense'"),
        (("last", "--run", "x"), "Name a sweep or runs, not both"),
        (("--out", "report.pdf"), "must end in .md, .csv or .html"),
        (("--out", "report.md", "--format", "html"), "means markdown"),
        (("--out", "no/such/folder/a.md"), "The folder no/such/folder does not exist"),
        (("--out", "/"), "is a folder"),
        (("--format", "pdf"), "'pdf' is not one of"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_code_2(sousa, store, words, message):
    started(store)
    said = sousa(*words, code=2)
    assert message in said and "Traceback" not in said


def test_baselines_stand_beside_runs_of_the_very_same_clips_alone(sousa, workspace, store, monkeypatch):
    run = Training.begin(workspace, config(seed=1, max_epochs=1)).finish()
    asked = store.runs.predictions(run.id, "test")
    one = baselines.Baseline(name=baselines.MAJORITY, right=5, n=200, macro_f1=0.01, how="always flam", tried={})
    folder = workspace.root / "baselines"
    folder.mkdir()
    known = baselines.Baselines(
        dataset="tiny", classes=40, baselines=(one,), computed_at_ms=0, compute_s=1.0, folder=folder,
        test_key=baselines.test_key(asked),
    )  # fmt: skip
    spool.write_predictions(folder / f"{baselines.MAJORITY}.jsonl", asked)
    monkeypatch.setattr(baselines, "read", lambda folder: known)
    assert "always flam" in sousa("--run", run.id)
    other = dataclasses.replace(known, test_key=baselines.test_key(asked[1:]))
    spool.write_predictions(folder / f"{baselines.MAJORITY}.jsonl", asked[1:])
    monkeypatch.setattr(baselines, "read", lambda folder: other)
    assert "always flam" not in sousa("--run", run.id)


def test_a_workspace_without_runs_has_nothing_to_report(sousa):
    assert "There is nothing to report" in sousa(code=2)
    assert "no sweeps yet" in sousa("last", code=2)


def test_a_run_in_the_place_of_a_sweep_is_told_apart(sousa, workspace, store):
    run = Training.begin(workspace, config(seed=1)).run
    store.sweeps.add("ranks", {}, (), created_by="test")
    assert f"--run {run.id}" in sousa(run.id, code=2)


def test_classes_of_the_matrix_are_those_of_the_test_clips(found):
    chart = figures(found, ["confusion"])["confusion"]
    assert len(chart.figure.data[0].z) == len(CLASSES)


# The pages


@pytest.mark.parametrize(("page", "query"), [("compare", "sweep"), ("sweeps", "id")])
def test_the_pages_offer_the_report_of_their_sweep(swept, monkeypatch, page, query):
    workspace, sweep_id = swept
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    monkeypatch.setattr(ensure, "ensure", lambda workspace, options=(): False)
    app = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=300).run()
    app.query_params[query] = sweep_id
    app.switch_page(str(PROJECT_ROOT / "pages" / f"{page}.py")).run()
    assert not app.exception, app.exception
    assert [button.label for button in app.get("download_button") if "report" in button.proto.id] == [
        "HTML with charts", "Markdown", "CSV of the runs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "begins"), [("markdown", "# rank and rate"), ("csv", "\ufeffid,title"), ("html", "<!doc")]
)
def test_a_download_is_the_report(swept, monkeypatch, form, begins):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(swept[0].root))
    assert report_view.made(form, sweep_id=swept[1]).decode().startswith(begins)


def test_a_download_of_runs_leaves_out_what_is_gone(workspace, store, monkeypatch):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    run = store.runs.enqueue(config())
    assert report_view.made("csv", run_ids=[run.id, "gone"]).count(b"\r\n") == 2
