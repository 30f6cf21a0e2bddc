"""The keeper, with real processes: whatever becomes of the trainer is written down."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_for

from sousa_engine.workspace import PROJECT_ROOT

pytestmark = pytest.mark.process
ENDLESS = "import time\nprint('up', flush=True)\nwhile True: time.sleep(0.05)"
OBEDIENT = (
    "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(3))\nprint('up', flush=True)\n"
    "while True: time.sleep(0.05)"
)
FILLING = "try:\n    open({path!r}, 'wb').write(b'x' * 10**6)\nexcept OSError:\n    raise SystemExit(9)"
DEAF = "import signal\nsignal.signal(15, signal.SIG_IGN)\n" + ENDLESS


class Kept:
    """One keeper started as the supervisor starts it, with a piece of Python as its trainer."""

    def __init__(self, folder, code, *, grace_s=60.0, argv=None, keeper=("-m", "sousa_engine.runs.keeper")):
        self.folder = folder
        lock = os.open(folder / "keeper.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        command = [sys.executable, *keeper, str(lock), str(grace_s), str(folder), "nonce-1"]
        with (folder / "train.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *(argv or [sys.executable, "-c", code])],
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock],
            )
        os.close(lock)

    def read(self, name):
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else None

    def log(self):
        return (self.folder / "train.log").read_text()

    def lock_is_held(self):
        with (self.folder / "keeper.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def trainer_pid(self):
        note = wait_for(lambda: (note := self.read("keeper.json")) and note["trainer_pid"] and note)
        return note["trainer_pid"]

    def exit(self):
        assert self.process.wait(timeout=120) is not None
        return self.read("exit.json")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def keep(tmp_path):
    kept = []

    def start(code="", **options):
        kept.append(Kept(tmp_path, code, **options))
        return kept[-1]

    yield start
    for one in kept:
        note = one.read("keeper.json") or {}
        for pid in (one.process.pid, note.get("trainer_pid")):
            if pid and alive(pid):
                os.kill(pid, signal.SIGKILL)
        one.process.wait()


def test_the_exit_code_and_the_times_are_recorded(keep):
    kept = keep("import sys; print('said'); sys.exit(7)")
    note = kept.exit()
    assert (note["nonce"], note["exit_code"], note["signal"]) == ("nonce-1", 7, None)
    assert note["started_ms"] <= note["steps"][0]["at_ms"] <= note["ended_ms"]
    assert [step["step"] for step in note["steps"]] == ["started"]
    assert kept.log() == "said\n"
    assert not kept.lock_is_held()


def test_a_killed_trainer_is_recorded_by_its_signal(keep):
    kept = keep(ENDLESS)
    os.kill(kept.trainer_pid(), signal.SIGKILL)
    note = kept.exit()
    assert (note["exit_code"], note["signal"]) == (None, signal.SIGKILL)


def test_the_trainer_writes_to_the_log_at_once_and_has_no_input(keep):
    kept = keep("import sys, time\nprint('read', repr(sys.stdin.read()))\ntime.sleep(600)")
    wait_for(lambda: kept.log() == "read ''\n")
    assert os.getpgid(kept.trainer_pid()) == kept.trainer_pid()


def test_a_stop_is_passed_on_and_the_trainers_own_end_is_what_counts(keep):
    kept = keep(OBEDIENT)
    wait_for(lambda: "up" in kept.log())
    kept.process.send_signal(signal.SIGTERM)
    kept.process.send_signal(signal.SIGTERM)  # once is enough, twice does no harm
    note = kept.exit()
    assert note["exit_code"] == 3
    assert [step["step"] for step in note["steps"]] == ["started", "SIGTERM"]


def test_a_trainer_that_does_not_stop_in_time_is_killed_and_each_step_recorded(keep):
    kept = keep(DEAF, grace_s=0.2)
    wait_for(lambda: "up" in kept.log())
    kept.process.send_signal(signal.SIGTERM)
    note = kept.exit()
    assert note["signal"] == signal.SIGKILL
    assert [step["step"] for step in note["steps"]] == ["started", "SIGTERM", "SIGKILL"]


def test_stop_now_kills_at_once_and_says_so(keep):
    kept = keep(OBEDIENT)
    wait_for(lambda: "up" in kept.log())
    kept.process.send_signal(signal.SIGUSR1)
    note = kept.exit()
    assert note["signal"] == signal.SIGKILL
    assert [step["step"] for step in note["steps"]] == ["started", "SIGKILL now"]


def test_stop_now_cuts_a_stop_short(keep):
    kept = keep(DEAF)
    wait_for(lambda: "up" in kept.log())
    kept.process.send_signal(signal.SIGTERM)
    steps = wait_for(lambda: len(kept.read("keeper.json")["steps"]) == 2 and kept.read("keeper.json")["steps"])
    assert [step["step"] for step in steps] == ["started", "SIGTERM"]  # seen while the trainer lives
    kept.process.send_signal(signal.SIGUSR1)
    note = kept.exit()
    assert note["signal"] == signal.SIGKILL and note["steps"][:2] == steps
    assert [step["step"] for step in note["steps"]] == ["started", "SIGTERM", "SIGKILL now"]


def test_many_stops_at_once_are_one_ladder_and_leave_whole_notes(keep):
    kept = keep(DEAF, grace_s=0.05)
    wait_for(lambda: "up" in kept.log())
    for _ in range(30):
        kept.process.send_signal(signal.SIGTERM)
    note = kept.exit()
    assert [step["step"] for step in note["steps"]] == ["started", "SIGTERM", "SIGKILL"]
    assert kept.read("keeper.json")["steps"] == note["steps"]
    assert not list(kept.folder.glob(".keeper.json.*"))


@pytest.mark.parametrize(("during", "counted"), [(0, 0), (2, 2), (None, None)])
def test_kills_for_want_of_memory_are_counted_from_start_to_end(keep, tmp_path, during, counted):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    counter = tmp_path / "memory.events"
    if during is not None:
        counter.write_text("oom_kill 3\n")
    here = (
        "from pathlib import Path\nfrom sousa_engine.runs import keeper; from sousa_engine.workspace import oom\n"
        f"real, here = oom.kills, Path({str(tmp_path)!r})\n"
        "oom.kills = lambda: real(here, here)\nkeeper.main()"
    )
    kept = keep(ENDLESS, keeper=("-c", here))
    pid = kept.trainer_pid()
    if during is not None:
        counter.write_text(f"oom_kill {3 + during}\n")
    os.kill(pid, signal.SIGKILL)
    assert kept.exit()["oom_kills"] == counted


@pytest.fixture
def small_cgroup(tmp_path):
    """The file cgroup.procs of a cgroup that may hold 64 MiB."""
    parents = [(Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")]
    for parent, limit in parents:
        group = parent / f"sousa-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if not (group / limit).exists():  # only a folder
            group.rmdir()
            continue
        (group / limit).write_text(str(64 << 20))
        yield group / "cgroup.procs"
        wait_for(lambda group=group: not (group / "cgroup.procs").read_text())
        group.rmdir()
        return
    pytest.skip("a cgroup with a limit of its own needs root")


def test_the_systems_own_kill_for_want_of_memory_is_told_from_a_plain_one(keep, small_cgroup):
    into = f"open({str(small_cgroup)!r}, 'w').write('0')\nfrom sousa_engine.runs import keeper\nkeeper.main()"
    hungry = keep("hoard = [b'x' * 2**20 for _ in range(400)]", keeper=("-c", into))
    note = hungry.exit()
    assert note["signal"] == signal.SIGKILL and note["oom_kills"] >= 1
    (hungry.folder / "keeper.json").unlink()
    plain = keep(ENDLESS, keeper=("-c", into))
    os.kill(plain.trainer_pid(), signal.SIGKILL)
    assert plain.exit()["oom_kills"] == 0


def test_what_the_trainer_leaves_behind_is_ended_with_it(keep):
    kept = keep(
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True)"
    )
    assert kept.exit()["exit_code"] == 0
    wait_for(lambda: not alive(int(kept.log())))


def test_a_stop_before_the_trainer_starts_starts_none(keep):
    early = (
        "import os, signal\nfrom sousa_engine.runs import keeper\nfrom sousa_engine.workspace import run_files\n"
        "write = run_files.write_json\n"
        "def write_then_stop(path, note):\n    write(path, note)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "run_files.write_json = write_then_stop\nkeeper.main()"
    )
    kept = keep(ENDLESS, keeper=("-c", early))
    note = kept.exit()
    assert (note["exit_code"], note["signal"], note["steps"]) == (None, None, [])
    assert kept.read("keeper.json")["trainer_pid"] is None


def test_a_trainer_that_cannot_be_started_is_an_end_too(keep):
    kept = keep(argv=["/no/such/python"])
    assert kept.exit()["exit_code"] == 127
    assert "could not be started" in kept.log()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="There is no /dev/full here.")
def test_a_log_on_a_full_disk_does_not_hide_that_the_trainer_could_not_be_started(keep, tmp_path):
    (tmp_path / "train.log").symlink_to("/dev/full")
    assert keep(argv=["/no/such/python"]).exit()["exit_code"] == 127


def test_the_trainer_of_a_killed_keeper_still_holds_the_lock_and_is_asked_to_stop(keep):
    kept = keep(DEAF)
    pid = kept.trainer_pid()
    wait_for(lambda: "up" in kept.log())
    kept.process.kill()
    kept.process.wait()
    assert alive(pid) and kept.lock_is_held() and kept.read("exit.json") is None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not kept.lock_is_held())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_keeper_has_the_kernel_stop_its_trainer(keep, tmp_path):
    kept = keep(OBEDIENT)
    wait_for(lambda: "up" in kept.log())
    kept.process.kill()
    wait_for(lambda: not kept.lock_is_held())


def test_a_full_disk_does_not_hide_how_the_run_ended(keep, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        kept = Kept(disk, FILLING.format(path=str(disk / "filler")))
        assert kept.exit()["exit_code"] == 9
        with pytest.raises(OSError):
            (disk / "more").write_bytes(b"x" * 8192)  # it really was full
    finally:
        subprocess.run(["umount", disk], check=True)
