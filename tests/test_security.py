"""Nothing from outside becomes a path, a command, markup or an object: names, uploads, YAML, logs, tables."""

from __future__ import annotations

import ast
import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from sousa_engine import backbones
from sousa_engine.analysis import log
from sousa_engine.analysis.export import runs_csv
from sousa_engine.backbones import pretrained
from sousa_engine.core import grammar, inputs, sweep_spec
from sousa_engine.core.config import DataConfig, RunConfig
from sousa_engine.core.errors import ConfigError, SousaError
from sousa_engine.data import manifest
from sousa_engine.store import Store
from sousa_engine.workspace import PROJECT_ROOT

SOURCES = [
    *PROJECT_ROOT.glob("*.py"), *(PROJECT_ROOT / "pages").glob("*.py"), *(PROJECT_ROOT / "sousa_engine").rglob("*.py")
]  # fmt: skip
CRAFTED = [
    "", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "a\0b", "x" * 5000, "%2e%2e", "é", "a b",
    "~root", "C:\\x", "run\n", "-\u202eab",
]  # fmt: skip
NO_PATHS = ["a\0b", "/" + "x" * 300, "x/" * 3000, "~nobody-of-this-name/x"]
NAMES = [
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![](http://evil.example/a.png)",
    "<script>x</script>",
]


# Paths


@pytest.mark.parametrize("run_id", CRAFTED)
def test_a_crafted_run_id_never_becomes_a_folder(workspace, run_id):
    with pytest.raises(ValueError, match="not a run id"):
        workspace.run_dir(run_id)


@pytest.mark.parametrize("path", NO_PATHS)
def test_what_can_be_no_path_is_a_sentence(workspace, path):
    variant = backbones.variant("ast-base")
    for look in (
        lambda: manifest.open_dataset(DataConfig(dataset=path)),
        lambda: manifest.absolute(path),
        lambda: pretrained.weights_state(variant, workspace, path),
        lambda: pretrained.import_weights(variant, backbones.family(variant), Path(path), workspace),
    ):
        with pytest.raises(SousaError) as caught:
            look()
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", [name for name in CRAFTED if name])
def test_names_of_target_sets_are_rows_and_no_files(workspace, name):
    with Store.open(workspace) as store:
        before = sorted(workspace.root.rglob("*"))
        try:
            store.target_sets.save(name, "ast-mini", ["layers.0.attention.q_proj"], "train")
        except SousaError:
            return
        assert sorted(workspace.root.rglob("*")) == before


@pytest.mark.parametrize("name", CRAFTED)
def test_names_of_backbones_and_presets_lead_to_no_file(name):
    with pytest.raises(SousaError):
        backbones.variant(name)
    with pytest.raises(SousaError):
        grammar.parse([f"training={name}"])


# Commands and SQL


@pytest.mark.parametrize("file", SOURCES, ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_no_shell_no_eval_no_pickle_no_loose_yaml(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        named = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert named.get("shell", "False") == "False", f"line {node.lineno}"
        assert called not in ("os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads"), (
            f"line {node.lineno}"
        )
        assert called not in ("yaml.unsafe_load", "yaml.full_load", "yaml.load_all"), f"line {node.lineno}"
        if called == "yaml.load":
            assert named.get("Loader") == "_Loader" and file.name == "inputs.py", f"line {node.lineno}"
        if called == "torch.load":
            assert named.get("weights_only") == "True", f"line {node.lineno}"
        if called.startswith("subprocess."):
            assert not node.args or not isinstance(node.args[0], ast.Constant | ast.JoinedStr), f"line {node.lineno}"


@pytest.mark.parametrize("text", ["'; DROP TABLE runs; --", '" OR 1=1', "%", "_", "x\0y", "*", 'a" NEAR b', "\ud83e"])
def test_what_is_searched_for_is_never_sql(workspace, text):
    from sousa_engine.core.records import RunFilter

    with Store.open(workspace) as store:
        run = store.runs.enqueue(RunConfig(name="kept"))
        assert store.runs.listing(RunFilter(words=text.encode("utf-8", "replace").decode())).rows in ([], ())
        assert store.runs.get(run.id) is not None
        assert store.runs.get(text.encode("utf-8", "replace").decode()) is None


# YAML

BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)
BAD_YAML = [
    BOMB,
    "a: !!python/object/apply:os.system ['true']",
    "[" * 5000,
    "x" * 1_000_001,
    "a: !!int 010",
    "\x00",
    "a: &x 1",
]


@pytest.mark.parametrize("text", BAD_YAML, ids=["aliases", "object", "deep", "large", "tag", "NUL", "anchor"])
def test_yaml_is_plain_small_and_flat(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    for read in (inputs.yaml_file, inputs.yaml_fields, sweep_spec.read):
        with pytest.raises(ConfigError, match=r"x\.yaml"):
            read(file)
    with pytest.raises(ConfigError, match="lora"):
        grammar.value(text, "lora.rank_pattern")


def test_plain_yaml_is_read(tmp_path):
    (tmp_path / "x.yaml").write_text("training: {lr: 0.1}\nlist:\n- [1, é]\n", encoding="utf-8")
    assert inputs.yaml_file(tmp_path / "x.yaml") == {"training": {"lr": 0.1}, "list": [[1, "é"]]}


# Logs and tables


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1bPq#0;2;0;0;0\x1b\\after", "after"),
        ("a\x00b\x07c\x9b", "abc"),
        ("safe\u202etxt.exe\u2066\u2069\u200b", "safetxt.exe"),
        ("\u2028one line", "one line"),
        ("tab\tand <b>", "tab\tand <b>"),
    ],
)
def test_a_log_line_is_shown_without_control_sequences(line, shown):
    assert log.clean(line) == shown


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1"])
def test_no_cell_of_the_table_is_a_formula(workspace, name):
    with Store.open(workspace) as store:
        store.runs.enqueue(RunConfig(name=name))
        (row,) = store.runs.listing().rows
    row = replace(row, note=name, tags=(name,), dataset=name, weights=name, device=name, sweep_id=name)
    for line in list(csv.reader(io.StringIO(runs_csv([row]))))[1:]:
        assert not any(re.match(r"[=+@\t\r]|-\D|-\d.*[^\d.e-]", cell) for cell in line), line


# Markup


def test_html_is_allowed_only_where_no_name_stands():
    """st.html and unsafe_allow_html: each use is known here, and escapes what it shows."""
    found = {
        f"{file.parent.name}/{file.name}"
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and (ast.unparse(node.func) == "st.html" or any(word.arg == "unsafe_allow_html" for word in node.keywords))
    }
    assert found <= {"pages/data.py", "web/parts.py", "web/compare_parts.py"}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_run_is_shown_as_text(workspace, monkeypatch, name):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    with Store.open(workspace) as store:
        run = store.runs.enqueue(RunConfig(name=name))
        store.runs.request_stop(run.id)
    studio = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=60).run()
    links = [link.proto.label for link in studio.get("page_link")]
    studio.query_params["id"] = run.id
    studio.switch_page(str(PROJECT_ROOT / "pages" / "run.py")).run()
    assert not studio.exception
    drawn = [element.value for kind in (studio.markdown, studio.title, studio.caption, studio.info) for element in kind]
    assert any("alert" in text or "evil" in text or "script" in text for text in [*links, *drawn])
    for text in [*links, *drawn]:
        assert name not in text


def test_no_value_is_put_into_a_config_past_its_checks():
    """pydantic's model_copy(update=...) and model_construct() check nothing; config.with_values() does."""
    past = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("model_copy", "model_construct")
    ]
    assert not past, past
