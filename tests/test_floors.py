"""The house: imports go down only, a package is used through its face, and nothing a page touches loads torch."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "sousa_engine"
PAGES = [ROOT / "app.py", *sorted((ROOT / "pages").glob("*.py"))]
PACKAGES = sorted(path.parent.name for path in ENGINE.glob("*/__init__.py"))
OUTSIDE = sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
NOT_OURS = {"_run"}  # Streamlit's AppTest has one too, for clicks that reach a page one after another


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it: modules, and names of modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(ENGINE).parts[0] if path.is_relative_to(ENGINE) else ""


def is_private(name: str) -> bool:
    return re.match("_[A-Za-z]", name) is not None


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@cache
def private_names() -> set[str]:
    """The underscore names that the engine and the pages define: functions, classes, variables, attributes of self."""
    found: set[str] = set()
    for path in [*ENGINE.rglob("*.py"), *PAGES]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
                found.add(node.attr)
    return {name for name in found if is_private(name)} - NOT_OURS


def touched(source: str) -> set[tuple[int, str]]:
    """(line, name) of each underscore name that is used from outside: as an attribute, in an import, in a call such as
    setattr(module, "_name"), or after a dot or an import within a string, which may be a program or a dotted path.
    """
    found: set[tuple[int, str]] = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Attribute) and not is_own(node.value):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("attr", "patch.object")):
            names = [str(word.value) for word in node.args if isinstance(word, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = re.findall(r"(?:\w\.|\bimport )(_\w+)", node.value)
        found |= {(node.lineno, name) for name in names if is_private(name)}
    return found


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_ours_are_not_touched_from_outside(path):
    assert not {(line, name) for line, name in touched(path.read_text()) if name in private_names()}


@pytest.mark.parametrize(
    "source",
    ["mel.{}(1)", "from mel import {}", "patch.setattr(mel, '{}', 1)", "run('print(mel.{}())')", "object.{} = 1"],
)
def test_a_private_name_that_is_touched_is_seen(source):
    name = min(private_names())
    assert touched(source.format(name)) == {(1, name)}
    assert not touched(f"self.{name} = {name}(1)")


def test_every_contract_of_pyproject_is_kept():
    """In its own process: import-linter configures logging, which silences the loggers of whoever calls it."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "7 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_only_the_package_and_its_entry_stand_beside_the_packages():
    assert {path.name for path in ENGINE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_for_and_what_others_may_import(package):
    face = importlib.import_module(f"sousa_engine.{package}")
    assert face.__doc__ and face.__all__
    for name in face.__all__:
        assert hasattr(face, name) or importlib.import_module(f"sousa_engine.{package}.{name}"), name


@pytest.mark.parametrize("path", [*sorted(ENGINE.rglob("*.py")), *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_others_use_a_package_through_its_face(path):
    for name in imports(path):
        top, _, rest = name.removeprefix("sousa_engine.").partition(".")
        if name.startswith("sousa_engine.") and top in PACKAGES and top != room(path) and rest:
            face = importlib.import_module(f"sousa_engine.{top}")
            assert rest.partition(".")[0] in face.__all__, f"{path.name} imports {name}: not in __all__ of {top}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_know_neither_sql_nor_torch_nor_the_ledger(path):
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & {"sqlite3", "sqlite_utils", "torch", "transformers", "peft", "click"}
    assert not any(name.startswith(("sousa_engine.store.ledger", "sousa_engine.cli")) for name in imports(path))


def test_keeper_needs_the_standard_library_alone():
    code = "import sys, sousa_engine.runs.keeper\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    tops = {name.split(".")[0] for name in done.stdout.split()} - {"__main__", "sousa_engine"}
    assert tops <= set(sys.stdlib_module_names), tops - set(sys.stdlib_module_names)


def test_what_the_pages_import_leaves_torch_unloaded():
    names = {
        name
        for path in [*(ENGINE / "web").rglob("*.py"), *PAGES]
        for name in imports(path)
        if name.startswith("sousa_engine.") and (ROOT / (name.replace(".", "/") + ".py")).exists()
    }
    names = {name for name in names if not name.startswith("sousa_engine.web.main")}
    code = f"import sys, importlib\nfor n in {sorted(names)!r}: importlib.import_module(n)\n"
    code += "heavy = {'torch', 'transformers', 'peft', 'librosa'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
