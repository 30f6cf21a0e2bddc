"""The doctor: every check can say no, names the fix then, and the report survives what it looks at."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from seeding import Training
from waiting import wait_for

from sousa_engine import backbones
from sousa_engine.backbones import pretrained
from sousa_engine.cli import doctor as doctor_cli
from sousa_engine.cli import main
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import RunError
from sousa_engine.maintenance import doctor, torch_facts
from sousa_engine.maintenance.doctor import Finding, address, installation, storage, weights
from sousa_engine.maintenance.torch_facts import Device, TorchFacts
from sousa_engine.store import Store, migrations
from sousa_engine.workspace import LEAST_FREE_BYTES, PROJECT_ROOT, Workspace, file_systems, locks

GPU = Device(name="cuda:0", title="H100", memory_mib=81_559, free_mib=80_000, bf16=True)
FACTS = TorchFacts(
    version="2.13.0", cuda="12.8", mps=False, devices=(GPU,), cpu_bf16=False, threads=4, torchaudio=""
)  # fmt: skip
ON_CPU = replace(FACTS, cuda=None, devices=())
Memory = namedtuple("Memory", "total available")
Usage = namedtuple("Usage", "total used free")


def healthy(finding: Finding) -> Finding:
    assert finding.level == "ok" and not finding.fix, finding
    return finding


def wrong(finding: Finding, level: str, *words: str) -> Finding:
    """It says so, with these words in text or fix, and a fix."""
    assert finding.level == level and finding.fix, finding
    for word in words:
        assert word in f"{finding.text} {finding.fix}", finding
    return finding


# Each check, both ways


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 9)])
def test_a_supported_python_is_fine(version):
    healthy(installation.python(version, "/usr/bin/python"))


@pytest.mark.parametrize("version", [(3, 10, 12), (3, 14, 0), (2, 7, 18)])
def test_another_python_is_a_problem(version):
    wrong(installation.python(version, "/usr/bin/python"), "problem", "3.12", ".".join(map(str, version)))


REQUIREMENTS = "# Exact versions\ntorch==2.13.0\npeft==0.21.2  # methods\n"


def test_packages_as_pinned_are_one_line_and_a_builds_mark_does_not_count():
    here = {"torch": "2.13.0+cpu", "peft": "0.21.2"}
    (only,) = installation.packages(REQUIREMENTS, here.get)
    assert "2 of 2" in healthy(only).text


def test_another_version_and_a_missing_package_are_told_apart():
    whole, torch, peft = installation.packages(REQUIREMENTS, {"torch": "2.1.0"}.get)
    assert "0 of 2" in whole.text
    wrong(torch, "warning", "torch 2.1.0", "2.13.0", "requirements.txt")
    wrong(peft, "problem", "peft 0.21.2 is not installed")


def pins(name):
    lines = [line.partition("#")[0].strip() for line in (PROJECT_ROOT / name).read_text().splitlines()]
    return [line for line in lines if line]


def test_every_line_of_our_requirements_is_a_pin():
    names = ("requirements.txt", "requirements-dev.txt")
    runtime, (first, *development) = (pins(name) for name in names)
    assert first == "-r requirements.txt"
    for name, wanted in zip(names, (runtime, development), strict=True):
        here = dict(line.split("==") for line in wanted)
        (whole,) = installation.packages((PROJECT_ROOT / name).read_text(), here.get)
        assert whole.text.startswith(f"{len(wanted)} of {len(wanted)} ")
    assert not {line.partition("==")[0] for line in runtime} & {line.partition("==")[0] for line in development}


def test_the_studio_is_installed_without_the_tools_that_test_it():
    imported = set()
    for file in [*PROJECT_ROOT.glob("sousa_engine/**/*.py"), *PROJECT_ROOT.glob("pages/*.py"), PROJECT_ROOT / "app.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.partition(".")[0] for name in names}
    development = {line.partition("==")[0].replace("-", "_") for line in pins("requirements-dev.txt")[1:]}
    assert "torch" in imported and not imported & (development | {"importlinter", "xdist", "benchmarks", "tests"})


def test_torch_that_fits_its_machine_is_fine():
    assert "CUDA 12.8" in healthy(installation.torch_build(FACTS, "", gpus=1)).text
    assert "CPU build" in healthy(installation.torch_build(ON_CPU, "", gpus=0)).text


def test_torch_that_does_not_fit_is_told():
    wrong(installation.torch_build(None, "it cannot be imported: no", gpus=0), "problem", "cannot be imported")
    wrong(installation.torch_build(ON_CPU, "", gpus=2), "warning", "CPU build", "2 NVIDIA GPUs", "pytorch.org")
    wrong(installation.torch_build(replace(FACTS, devices=()), "", gpus=1), "warning", "nvidia-smi")


def test_torchaudio_may_do_without_its_extension_but_not_fail():
    healthy(installation.torchaudio(FACTS))
    healthy(installation.torchaudio(replace(FACTS, torchaudio="without extension")))
    wrong(
        installation.torchaudio(replace(FACTS, torchaudio="guarded")),
        "warning",
        "maintenance.torchaudio_repair",
        "peft",
    )
    wrong(installation.torchaudio(replace(FACTS, torchaudio="No module named 'torchaudio'")), "problem", "No module")


def test_devices_are_listed_with_their_memory():
    text = healthy(installation.devices(FACTS, Memory(32 << 30, 16 << 30))).text
    assert "cuda:0: H100, 81,559 MiB, 80,000 MiB free" in text and "cpu: 32,768 MiB" in text
    wrong(installation.devices(ON_CPU, Memory(4 << 30, 200 << 20)), "warning", "200 MiB free")


def test_bf16_is_told_for_each_device():
    unknown = replace(GPU, name="mps", bf16=None)
    text = healthy(installation.bf16(replace(FACTS, devices=(GPU, unknown)))).text
    assert text == "cuda:0: in hardware; mps: unknown; cpu: not in hardware (use float32)"


@pytest.mark.parametrize(
    ("flags", "told"), [("flags : fpu avx512f avx512_bf16", True), ("Features : fp asimd", False), (None, None)]
)
def test_bf16_of_the_cpu_is_what_the_system_says(tmp_path, flags, told):
    if flags:
        (tmp_path / "cpuinfo").write_text(flags)
    assert torch_facts.cpu_bf16(tmp_path / "cpuinfo") is told


def test_threads_are_held_against_cores():
    healthy(installation.threads(4, 4, {}))
    healthy(installation.threads(None, 4, {}))
    wrong(installation.threads(8, 4, {}), "warning", "OMP_NUM_THREADS=4")
    wrong(installation.threads(1, 16, {"OMP_NUM_THREADS": "1"}), "warning", "OMP_NUM_THREADS=1")


def test_a_load_above_the_cores_is_a_warning():
    healthy(installation.load(None, 2))
    healthy(installation.load(2.0, 2))
    wrong(installation.load(2.1, 2), "warning", "2.1 on 2 cores", "queue slots")


@pytest.mark.parametrize(
    ("free", "level"), [(LEAST_FREE_BYTES - 1, "problem"), (storage.LITTLE_FREE_BYTES - 1, "warning")]
)
def test_little_room_on_a_disk_is_told_before_it_is_full(free, level):
    wrong(storage.disk("Disk", Path("/x"), lambda _: Usage(10**12, 0, free)), level, "GiB free at /x")
    healthy(storage.disk("Disk", Path("/x"), lambda _: Usage(10**12, 0, storage.LITTLE_FREE_BYTES)))


def test_a_disk_that_is_gone_is_a_problem():
    def gone(folder):
        raise OSError(5, "Input/output error")

    wrong(storage.disk("Disk", Path("/x"), gone), "problem", "Input/output error")


def test_a_workspace_that_cannot_be_written_to_is_a_problem(tmp_path):
    healthy(storage.writable(tmp_path, storage.write_trouble(tmp_path)))
    assert list(tmp_path.iterdir()) == []
    trouble = storage.write_trouble(tmp_path / "gone")
    wrong(storage.writable(tmp_path / "gone", trouble), "problem", "No such file or directory", "SOUSA_WORKSPACE")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "apfs", "overlay", "fuseblk", ""])
def test_a_local_file_system_is_fine(kind):
    healthy(storage.file_system(Path("/x"), kind))


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.rclone", "lustre"])
def test_a_network_file_system_is_a_problem(kind):
    wrong(storage.file_system(Path("/x"), kind), "problem", kind, "local disk")


def test_a_file_system_in_memory_is_a_warning():
    wrong(storage.file_system(Path("/x"), "tmpfs"), "warning", "lost")


def test_the_file_system_is_that_of_the_longest_mount_point(monkeypatch, tmp_path):
    Part = namedtuple("Part", "mountpoint fstype")
    deep = str(tmp_path.resolve())
    parts = [Part(deep, "ext4"), Part("/", "overlay"), Part(deep + "x", "nfs"), Part(deep, "tmpfs")]
    monkeypatch.setattr(file_systems.psutil, "disk_partitions", lambda all: parts)
    assert file_systems.kind_of(tmp_path) == "tmpfs"
    assert file_systems.kind_of(Path("/")) == "overlay"


def test_a_database_is_none_yet_whole_or_damaged(workspace):
    assert "none yet" in healthy(storage.database(workspace, migrations.look)).text
    with Store.open(workspace) as store:
        store.runs.enqueue(RunConfig())
    assert "intact, 1 run" in healthy(storage.database(workspace, migrations.look)).text
    damaged = migrations.Look(3, 3, frozenset({"a"}), "row 7 missing from index")
    wrong(storage.database(workspace, lambda _: damaged), "problem", "row 7", "db rebuild")


def test_an_older_database_is_told_and_left_as_it_is(workspace):
    with Store.open(workspace):
        pass
    found = migrations.look(workspace)
    with contextlib.closing(sqlite3.connect(workspace.db)) as db:
        db.execute(f"PRAGMA user_version = {found.latest - 1}")
    assert f"upgraded to {found.latest}" in healthy(storage.database(workspace, migrations.look)).text
    assert migrations.look(workspace).version == found.latest - 1


@pytest.mark.parametrize("how", ["garbage", "newer", "foreign", "torn"])
def test_a_database_that_is_not_ours_is_a_problem_with_its_fix(workspace, how):
    with Store.open(workspace) as store:
        for seed in range(200):
            store.runs.enqueue(RunConfig(seed=seed))
    if how == "garbage":
        workspace.db.write_bytes(b"this is no database" * 100)
    elif how == "torn":
        with contextlib.closing(sqlite3.connect(workspace.db)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        half = bytearray(workspace.db.read_bytes())
        half[len(half) // 2 :] = bytes(len(half) - len(half) // 2)
        workspace.db.write_bytes(half)
    else:
        pragma = "user_version = 99" if how == "newer" else "application_id = 7"
        with contextlib.closing(sqlite3.connect(workspace.db)) as db:
            db.execute(f"PRAGMA {pragma}")
    wrong(storage.database(workspace, migrations.look), "problem", "runs.db")


def test_a_supervisor_may_rest_but_not_while_runs_wait():
    log = Path("/w/supervisor.log")
    healthy(storage.supervisor(True, 3, log))
    healthy(storage.supervisor(False, 0, log))
    healthy(storage.supervisor(False, None, log))
    wrong(storage.supervisor(False, 2, log), "warning", "2 runs queued", str(log))
    assert "2 runs queued, but paused" in healthy(storage.supervisor(False, 2, log, is_paused=True)).text


def test_weights_that_can_be_fetched_are_no_trouble_embedded_ones_that_are_gone_are():
    assert "not installed: ast-base" in healthy(weights.weights({"ast-mini": "embedded", "ast-base": ""})).text
    wrong(weights.weights({"ast-mini": "", "ast-base": "downloaded"}), "problem", "not installed: ast-mini")
    wrong(
        weights.weights({"ast-mini": "", "beats-mini": "embedded"}),
        "problem",
        "not installed: ast-mini",
        "git checkout",
    )


def test_weights_that_are_cut_off_are_told_with_the_way_to_have_them_again(workspace, monkeypatch, tmp_path):
    places = {"ast-mini": "embedded", "ast-base": "put there by hand"}
    found = weights.weights(places, {"ast-mini": "", "ast-base": "model.safetensors is truncated."})
    wrong(found, "warning", "is truncated", "weights fetch ast-base")
    wrong(weights.weights(places, {"ast-mini": "It is truncated.", "ast-base": ""}), "problem", "is truncated")
    assert not any(weights.what_is_wrong(name, workspace) for name in backbones.VARIANTS)
    file = workspace.weights / "ast-base" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"garbage")
    assert "not a safetensors file" in weights.what_is_wrong("ast-base", workspace)
    monkeypatch.setattr(pretrained, "EMBEDDED", tmp_path)
    (tmp_path / "ast-mini").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "ast-mini" / name).write_bytes(b"{")
    assert weights.where_weights_are("ast-mini", workspace) == ""


def test_the_browser_address_is_told_and_who_is_there():
    assert "http://127.0.0.1:8501" in healthy(address.address("127.0.0.1", 8501, "studio", has_token=False)).text
    healthy(address.address("::1", 8501, "", has_token=False))
    healthy(address.address("0.0.0.0", 8501, "", has_token=True))
    wrong(address.address("127.0.0.1", 8501, "a web server", has_token=False), "warning", "another program")
    for everywhere in ("0.0.0.0", "", "192.168.1.5"):
        wrong(address.address(everywhere, 8501, "", has_token=False), "problem", "SOUSA_TOKEN")


def test_the_address_is_read_as_streamlit_reads_it(tmp_path):
    file = tmp_path / "config.toml"
    assert address.studio_address(file, {}) == ("", 8501)
    file.write_text('[server]\naddress = "127.0.0.1"\nport = 9000\n')
    assert address.studio_address(file, {}) == ("127.0.0.1", 9000)
    assert address.studio_address(file, {"STREAMLIT_SERVER_ADDRESS": "0.0.0.0", "STREAMLIT_SERVER_PORT": "x"}) == (
        "0.0.0.0",
        8501,
    )
    assert address.studio_address(PROJECT_ROOT / ".streamlit" / "config.toml", {}) == ("127.0.0.1", 8501)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "studio"),
        (b"HTTP/1.1 401 No\r\nWWW-Authenticate: SOUSA-token\r\nContent-Length: 0\r\n\r\n", "studio"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "a web server"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "a web server"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "BadStatusLine"),
    ],
)
def test_who_answers_at_the_address(answer, told):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert address.who_answers("127.0.0.1", server.getsockname()[1]) == told
        thread.join()
        port = server.getsockname()[1]
    assert address.who_answers("127.0.0.1", port) == ""


def test_being_offline_is_no_fault_and_is_told():
    healthy(weights.network(""))
    assert "offline: no cable." in healthy(weights.network("no cable")).text


@pytest.mark.parametrize("preferred", ["UTF-8", "utf8", "utf_8"])
def test_utf8_is_fine_under_any_spelling(preferred):
    healthy(installation.text_encoding("utf-8", preferred))


def test_another_encoding_is_a_warning():
    wrong(installation.text_encoding("utf-8", "ISO-8859-1"), "warning", "ISO-8859-1", "PYTHONUTF8")


# PyTorch, whatever it does


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("raise ImportError('libcudart.so.12: cannot open')", "libcudart.so.12"),
        ("print('{}')", "cannot be imported"),
        ("", "exit code 0"),
        ("import time; time.sleep(60)", "more than 1 s"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_a_finding(code, told):
    facts, trouble = installation.look_at_torch([sys.executable, "-c", code], limit_s=1 if "sleep" in code else 30)
    assert facts is None and told in trouble


def test_torch_is_looked_at_here():
    facts, trouble = installation.look_at_torch([sys.executable, "-m", "sousa_engine.maintenance.torch_facts"])
    assert trouble == "" and facts is not None
    assert facts.version == installation.installed_version("torch")
    assert facts.torchaudio in ("", "without extension", "guarded") and facts.threads >= 1


# The report


def test_the_whole_report_of_this_machine(workspace, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root / "new"))
    result = CliRunner().invoke(main.main, ["--workspace", str(workspace.root / "new"), "doctor", "--json"])
    report = json.loads(result.output)
    findings = doctor.from_json(result.output)
    assert result.exit_code == (1 if report["level"] == "problem" else 0)
    names = [finding.name for finding in findings if not finding.name.startswith("Package ")]
    assert names == [
        "SOUSA engine", "Python", "SQLite", "Packages", "PyTorch", "torchaudio", "Devices", "bf16", "CPU", "Load",
        "Disk of the workspace", "Disk for temporary files", "Workspace", "File system", "Database", "Supervisor",
        "Weights", "Browser address", "Network", "Text encoding",
    ]  # fmt: skip
    assert all(bool(finding.fix) == (finding.level != "ok") for finding in findings)
    assert not (workspace.root / "new").exists(), "the doctor looks, and makes nothing"


def test_runs_that_wait_for_a_dead_supervisor_are_in_the_report(workspace):
    with Store.open(workspace) as store:
        store.runs.enqueue(RunConfig())
    assert storage.waiting_runs(workspace) == 1
    assert not locks.is_held(workspace.supervisor_lock)
    assert storage.waiting_runs(Workspace(root=workspace.root / "none")) is None


def test_runs_of_a_paused_queue_wait_for_no_supervisor(workspace):
    with Store.open(workspace) as store:
        assert not storage.is_paused(workspace)
        store.runs.enqueue(RunConfig())
        assert not storage.is_paused(workspace)
        store.queue.pause()
    assert storage.is_paused(workspace)
    assert not storage.is_paused(Workspace(root=workspace.root / "none"))


@pytest.mark.parametrize("name", ["", "runs"])
def test_a_file_where_a_folder_has_to_be_is_two_lines_and_no_traceback(tmp_path, name, monkeypatch):
    monkeypatch.setattr(installation, "look_at_torch", lambda command: (ON_CPU, ""))
    (tmp_path / "w").mkdir()
    place = Workspace(root=tmp_path / "w" if name else tmp_path / "file")
    (place.root / name).write_text("a note")
    wrong(storage.writable(place.root, storage.in_the_way(place)), "problem", f"{place.root / name} is a file")
    wrong(storage.database(place, migrations.look), "problem", "cannot be read: Not a directory")
    result = CliRunner().invoke(main.main, ["doctor"], env={"SOUSA_WORKSPACE": str(place.root)})
    assert result.exit_code == 1 and f"{place.root / name} is a file" in result.output


def test_a_workspace_that_may_not_be_looked_into_is_a_problem(workspace, monkeypatch):
    def locked(self, **how):
        raise PermissionError(13, "Permission denied", str(self))

    Store.open(workspace).close()
    monkeypatch.setattr(Path, "stat", locked)
    wrong(storage.writable(workspace.root, storage.in_the_way(workspace)), "problem", "Permission denied")
    wrong(storage.database(workspace, migrations.look), "problem", "Permission denied", "read permission")


@pytest.mark.parametrize("package", ["pydantic", "tqdm", "numpy"])
def test_a_package_that_is_missing_is_one_line_with_its_fix_from_every_command(tmp_path, package):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {package}', name={package!r})")
    command = [sys.executable, "-m", "sousa_engine", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert package in done.stderr and sys.executable in done.stderr and "pip install -r requirements.txt" in done.stderr


BAD = Finding(name="Disk", level="problem", text="full", fix="Free some.")
ODD = Finding(name="CPU", level="warning", text="slow", fix="Unset it.")
FINE = Finding(name="Python", level="ok", text="3.12")


@pytest.mark.parametrize(
    ("findings", "code", "said"),
    [
        ([FINE, BAD, ODD], 1, "1 problem, 1 warning; the other check passed."),
        ([FINE, ODD, ODD], 0, "2 warnings; the other check passed."),
        ([FINE], 0, "All checks passed."),
    ],
)
def test_the_exit_code_is_1_for_problems_alone_and_every_fix_is_shown(monkeypatch, findings, code, said):
    monkeypatch.setattr(doctor_cli.doctor, "examine", lambda workspace: tuple(findings))
    result = CliRunner().invoke(main.main, ["doctor"])
    assert result.exit_code == code
    assert said in result.output
    assert all(f"-> {f.fix}" in result.output for f in findings if f.fix)


def test_the_page_gets_the_same_report_from_a_process(workspace):
    command = [sys.executable, "-c", f"print({doctor.to_json([FINE, BAD])!r}); raise SystemExit(1)"]
    assert doctor.ask(workspace, command) == [FINE, BAD]


def test_the_page_tells_it_where_the_studio_really_is(workspace):
    finding = 'dict(name="a", level="ok", text=str(address.studio_address(pathlib.Path("none"), os.environ)))'
    code = "import json, os, pathlib; from sousa_engine.maintenance.doctor import address;"
    code += f"print(json.dumps(dict(findings=[{finding}])))"
    (found,) = doctor.ask(workspace, [sys.executable, "-c", code], at=("127.0.0.1", 8871))
    assert found.text == "('127.0.0.1', 8871)"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise RuntimeError('boom')", "boom"),
        ("print('[]')", "no error message"),
        ("import time; time.sleep(60)", "1 s"),
    ],
)
def test_a_doctor_that_fails_or_hangs_is_a_sentence(workspace, code, told):
    with pytest.raises(RunError, match=told):
        doctor.ask(workspace, [sys.executable, "-c", code], limit_s=1 if "sleep" in code else 30)


def test_run_folders_that_the_database_lost_are_a_problem(workspace):
    Training.begin(workspace).finish()
    healthy(storage.database(workspace, migrations.look))
    for file in workspace.root.glob("runs.db*"):
        file.unlink()
    wrong(storage.database(workspace, migrations.look), "problem", "db rebuild")
    Store.open(workspace).close()  # what the next command does
    wrong(storage.database(workspace, migrations.look), "problem", "db rebuild")


def test_the_lock_held_by_another_program_is_named_and_so_is_a_suspended_supervisor(workspace):
    workspace.make()
    lock = locks.take(workspace.supervisor_lock)
    try:
        found = storage.supervisor(True, 2, workspace.supervisor_log, holder=storage.holder(workspace))
        assert found.level == "problem" and "no run can start" in found.text
        if sys.platform == "linux":
            assert f"process {os.getpid()} " in found.text
    finally:
        os.close(lock)
    words = [sys.executable, "-c", "import time; time.sleep(60)", "-m", "sousa_engine.runs.supervisor"]
    process = subprocess.Popen(words)
    try:
        workspace.supervisor_lock.write_text(f"{process.pid}\n")
        wait_for(lambda: storage.holder(workspace) is None)  # its command line can be read a moment after its start
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        assert f"kill -CONT {process.pid}" in storage.holder(workspace)[1]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((3, 40, 1), "warning"),
        ((3, 51, 2), "warning"),
        ((3, 50, 6), "warning"),
        ((3, 50, 7), "ok"),
        ((3, 51, 3), "ok"),
        ((3, 53, 0), "ok"),
    ],
)
def test_an_sqlite_with_the_race_is_named(version, level):
    assert installation.sqlite(version).level == level
