"""The house rule: imports go down only, and nothing a page touches loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "sousa_engine"
FLOORS = {
    0: [
        "targets",
        "core",
        "workspace",
    ],
    1: ["store"],
    2: ["backbones", "frontends", "data", "training"],
    3: ["analysis", "report"],
    4: [
        "maintenance",
        "runs",
        "cli",
        "__main__",
    ],
    5: ["web", "pages"],
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
STREAMLIT_ONLY_IN = {"web", "pages"}
SQL_ONLY_IN = {"store", "maintenance"}


def files() -> list[tuple[str, Path]]:
    own = [(path.relative_to(ENGINE).parts[0].removesuffix(".py"), path) for path in ENGINE.rglob("*.py")]
    return [*(item for item in own if item[0] != "__init__"), *(("pages", p) for p in (ROOT / "pages").glob("*.py"))]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_stands_on_a_floor():
    assert {room for room, _ in files()} <= set(FLOOR_OF)


@pytest.mark.parametrize(("room", "path"), files(), ids=lambda value: value.name if isinstance(value, Path) else value)
def test_imports_go_down_only(room, path):
    floor = FLOOR_OF[room]
    names = imports(path)
    rooms = {name.split(".")[1] for name in names if name.startswith("sousa_engine.")} & set(FLOOR_OF)
    above = {other for other in rooms if FLOOR_OF[other] > floor}
    assert not above, f"{path.name} (floor {floor}) imports from above: {above}"
    if floor == 2:
        assert not {other for other in rooms if FLOOR_OF[other] == 1}, (
            f"{path.name}: floors 1 and 2 do not know each other"
        )
    tops = {name.split(".")[0] for name in names}
    if room not in STREAMLIT_ONLY_IN:
        assert "streamlit" not in tops
    if room not in SQL_ONLY_IN:
        assert not tops & {"sqlite3", "sqlite_utils"}


def test_keeper_needs_the_standard_library_alone():
    tops = {name.split(".")[0] for name in imports(ENGINE / "runs" / "keeper.py")} - {"__future__"}
    assert tops <= set(sys.stdlib_module_names) | {"sousa_engine"}


def test_what_the_pages_import_leaves_torch_unloaded():
    names = {
        name
        for room, path in files()
        if room in ("pages", "web")
        for name in imports(path)
        if name.startswith("sousa_engine.") and (ROOT / (name.replace(".", "/") + ".py")).exists()
    }
    names = {name for name in names if not name.startswith("sousa_engine.web.main")}
    code = f"import sys, importlib\nfor n in {sorted(names)!r}: importlib.import_module(n)\n"
    code += "heavy = {'torch', 'transformers', 'peft', 'librosa'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
