"""Every process that computes waits without spinning, unless the user chose otherwise."""

import ast
import sys
from pathlib import Path

import pytest

import sousa_engine
from sousa_engine.workspace import processes

PACKAGE = Path(sousa_engine.__file__).parent
# These start processes that compute nothing, or hand on an environment that was made for them.
OTHERS = {
    "core/torchaudio_guard.py": "tries an import",
    "maintenance/doctor/child.py": "looks at PyTorch",
    "runs/executors/local.py": "asks nvidia-smi",
    "runs/keeper.py": "hands on its own environment, which local.py made",
}


def test_threads_wait_passively_unless_the_user_says_how_they_wait():
    assert processes.environment({"A": "1"}, {"B": "2"}) == {"A": "1", "B": "2", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_set_is_kept(name):
    assert processes.environment(base={name: "7"}) == {name: "7"}


def test_a_detached_process_gets_that_environment(tmp_path, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    with (tmp_path / "log").open("w+b") as log:
        code = "import os; print(os.environ['OMP_WAIT_POLICY'])"
        processes.start_detached([sys.executable, "-c", code], log=log, lock=log.fileno()).wait()
        log.seek(0)
        assert log.read() == b"PASSIVE\n"


def test_whatever_starts_a_process_gives_it_that_environment():
    starts = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("subprocess.Popen", "subprocess.run"):
                env = next((ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "env"), "")
                starts.setdefault(name, []).append((env, file))
    assert {"data/scan.py", "data/excerpt.py", "runs/timing.py", "workspace/processes.py", *OTHERS} <= set(starts)
    for name in starts.keys() - OTHERS.keys():
        for env, file in starts[name]:
            made = env.startswith(("processes.environment(", "environment("))
            assert made or (env == "env" and "env = processes.environment(" in file.read_text(encoding="utf-8")), name
    assert "env = processes.environment(" in (PACKAGE / "runs" / "executors" / "local.py").read_text(encoding="utf-8")
