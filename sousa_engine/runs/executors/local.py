"""Runs on this machine: one keeper and one trainer per attempt, found again by lock and nonce after any restart."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil

from sousa_engine.core.config import with_values
from sousa_engine.core.errors import RunError
from sousa_engine.core.records import Run
from sousa_engine.runs.executors import Sighting, device_of
from sousa_engine.workspace import Workspace, locks, processes, run_files

TRAINER_MODULE = "sousa_engine.runs.trainer"
KEEPER_MODULE = "sousa_engine.runs.keeper"
# Module names until version 0.1.0: runs that an earlier version started are adopted and stopped as well.
_FORMER_TRAINER, _FORMER_KEEPER = "sousa_engine.trainer", "sousa_engine.keeper"
GRACE_S = 60.0  # between SIGTERM and SIGKILL
_DEVICES_KEPT_S = 60.0
_seen_devices: tuple[float, tuple[str, ...]] | None = None


class LocalExecutor:
    """trainer_module: run by `python -m` with the run's folder as its argument. Tests put a double there."""

    def __init__(self, workspace: Workspace, *, trainer_module: str = TRAINER_MODULE, grace_s: float = GRACE_S):
        self._workspace = workspace
        self._trainer_module = trainer_module
        self._grace_s = grace_s
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}

    def devices(self, *, fresh: bool = False) -> tuple[str, ...]:
        return devices(fresh=fresh)

    def submit(self, run: Run, nonce: str, *, cpu_slots: int = 1) -> None:
        folder = self._workspace.run_dir(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        with _taken(folder / run_files.KEEPER_LOCK) as lock:
            for stale in (run_files.KEEPER, run_files.EXIT, run_files.RESULT):
                (folder / stale).unlink(missing_ok=True)
            assert run.device is not None  # it was claimed
            config = with_values(run.config, device=device_of(run.device))
            run_files.write_json(folder / run_files.CONFIG, config.model_dump(mode="json"))
            trainer = [sys.executable, "-m", self._trainer_module, str(folder)]
            keeper = [sys.executable, "-m", KEEPER_MODULE, str(lock), str(self._grace_s), str(folder), nonce]
            with (folder / run_files.LOG).open("ab") as log:
                env = processes.environment({"SOUSA_WORKSPACE": str(self._workspace.root)})
                if config.device.startswith("cuda:"):
                    env |= {"CUDA_VISIBLE_DEVICES": _only_gpu(config.device)}  # Accelerate takes the first one it sees
                if cpu_slots > 1 and device_of(run.device) == "cpu":
                    env |= {"OMP_NUM_THREADS": str(share_of_threads(cpu_slots))}  # also PyTorch's count
                self._keepers[nonce] = processes.start_detached([*keeper, *trainer], log=log, lock=lock, env=env)

    def poll(self, run: Run, nonce: str) -> Sighting:
        if (keeper := self._keepers.get(nonce)) and keeper.poll() is not None:
            del self._keepers[nonce]  # reaped
        folder = self._workspace.run_dir(run.id)
        held = locks.is_held(folder / run_files.KEEPER_LOCK)  # before the notes: see Sighting
        note = _of_attempt(run_files.read_keeper(folder / run_files.KEEPER), nonce)
        exit_note = _of_attempt(run_files.read_exit(folder / run_files.EXIT), nonce)
        # An exit is an end even while something that escaped the trainer's group still holds the lock.
        is_alive = held and not exit_note
        started = exit_note or (note if note and note["trainer_pid"] else None)
        return Sighting(
            is_alive=is_alive,
            is_orphan=is_alive and note is not None and not _is_process(note["pid"], nonce),
            started_at_ms=started["started_ms"] if started else None,
            trainer_started=started is not None,
            was_rebooted=_was_rebooted(note),
            steps=(exit_note or note or {"steps": ()})["steps"],
            exit=exit_note,
            # It names no attempt, but submit removed the earlier one, so it belongs to the attempt of the note.
            result=run_files.read_result(folder / run_files.RESULT) if note or exit_note else None,
        )

    def stop(self, run: Run, nonce: str, *, now: bool = False) -> bool:
        folder = self._workspace.run_dir(run.id)
        note = _of_attempt(run_files.read_keeper(folder / run_files.KEEPER), nonce)
        reached = note is not None and _signal(note["pid"], nonce, signal.SIGUSR1 if now else signal.SIGTERM)
        if note is not None and reached:
            _signal(note["pid"], nonce, signal.SIGCONT)  # a suspended keeper takes the step as well
        if reached and not now:
            return True
        # A trainer without its keeper; and for a stop at once, also in case its keeper hangs.
        for leader in _group_leaders(self._trainer_module, str(folder)):
            reached |= _kill_group(leader) if now else _signal(leader, str(folder), signal.SIGTERM)
        return reached

    def kill(self, run: Run, nonce: str) -> bool:
        folder = self._workspace.run_dir(run.id)
        reached = False
        for leader in _group_leaders(self._trainer_module, str(folder)):
            reached |= _kill_group(leader)
        note = _of_attempt(run_files.read_keeper(folder / run_files.KEEPER), nonce)
        return (note is not None and _signal(note["pid"], nonce, signal.SIGKILL)) or reached


def devices(*, fresh: bool = False) -> tuple[str, ...]:
    """Devices that PyTorch can use on this machine, best first: cuda:0, ..., mps, cpu. Never imports torch."""
    global _seen_devices
    now = time.monotonic()
    if fresh or _seen_devices is None or now - _seen_devices[0] > _DEVICES_KEPT_S:
        found = [f"cuda:{index}" for index in range(_gpus())] if _torch_has_cuda() else []
        if sys.platform == "darwin" and platform.machine() == "arm64":
            found.append("mps")
        _seen_devices = now, (*found, "cpu")
    return _seen_devices[1]


def absence(device: str) -> str:
    """Why `device` cannot be used here, with the fix."""
    here = f"Available: {', '.join(devices())}."
    if device.startswith("cuda") and _gpus() and not _torch_has_cuda():
        return f"{device} cannot be used: this PyTorch is a CPU build. Install PyTorch for CUDA. {here}"
    return f"{device} is not available on this machine. {here} Set device=auto, or use another machine."


def share_of_threads(cpu_slots: int) -> int:
    """Threads for each of `cpu_slots` runs that share our cores; at most what OMP_NUM_THREADS says."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(ours // cpu_slots, int(asked) if asked.isdecimal() and int(asked) else ours))


def _gpus() -> int:
    """Number of NVIDIA GPUs that the driver shows, limited by CUDA_VISIBLE_DEVICES."""
    visible = _visible_gpus()
    if visible is not None:
        return len(visible)
    listed = Path("/proc/driver/nvidia/gpus")
    if listed.is_dir():
        return len(list(listed.iterdir()))
    try:
        found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len([line for line in found.stdout.splitlines() if line.startswith("GPU ")])


def _visible_gpus() -> list[str] | None:
    """GPUs that CUDA_VISIBLE_DEVICES names, by number or by id; None if it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else [word.strip() for word in visible.split(",") if word.strip() not in ("", "-1")]


def _only_gpu(device: str) -> str:
    """CUDA_VISIBLE_DEVICES for a run that gets only `device`. With 2,3 visible to us, cuda:1 is 3."""
    number = int(device.removeprefix("cuda:"))
    visible = _visible_gpus()
    return str(number) if visible is None or number >= len(visible) else visible[number]


def _torch_has_cuda() -> bool:
    """Whether PyTorch was built for CUDA, read from its version file: importing it would cost seconds and 300 MiB."""
    spec = find_spec("torch")
    if spec is None or not spec.origin:
        return False
    text = (Path(spec.origin).parent / "version.py").read_text()
    return re.search(r"^cuda\b.*=\s*['\"]", text, re.MULTILINE) is not None


@contextlib.contextmanager
def _taken(path: Path) -> Iterator[int]:
    """The descriptor of the locked file. A process that inherits it keeps the lock when ours is closed."""
    lock = locks.take(path)
    if lock is None:
        raise RunError(f"An earlier attempt is still running: {path} is locked.")
    try:
        yield lock
    finally:
        os.close(lock)  # no LOCK_UN: that would release it for the keeper too


def _of_attempt(note: dict | None, nonce: str) -> dict | None:
    return note if note and note.get("nonce") == nonce else None


def _was_rebooted(note: dict | None) -> bool | None:
    now, then = run_files.boot_id(), note.get("boot_id") if note else None
    return None if now is None or then is None else now != then


def _is_process(pid: int | None, word: str) -> bool:
    """Whether `pid` still has `word` in its command line: another program may have that pid by now."""
    try:
        return pid is not None and word in psutil.Process(pid).cmdline()  # a zombie's is empty
    except psutil.Error:
        return False


def _group_leaders(trainer_module: str, folder: str) -> list[int]:
    """Trainers of this folder, each the leader of its process group. Its keeper, which also leads one, is left out."""
    trainers = [["-m", name] for name in (trainer_module, _FORMER_TRAINER)]
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if words[-3:-1] in trainers and words[-1:] == [folder] and not {KEEPER_MODULE, _FORMER_KEEPER} & set(words):
            found.append(process.info["pid"])
    return [pid for pid in found if _leads_group(pid)]


def _leads_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _signal(pid: int | None, word: str, number: int) -> bool:
    """Send a signal to a process with `word` in its command line, never to another that has its pid by now."""
    if pid is None:
        return False
    try:
        if not hasattr(os, "pidfd_open"):
            return _is_process(pid, word) and os.kill(pid, number) is None
        handle = os.pidfd_open(pid)  # of this very process, even if its pid is reused
        try:
            return _is_process(pid, word) and signal.pidfd_send_signal(handle, number) is None
        finally:
            os.close(handle)
    except (ProcessLookupError, PermissionError):
        return False


def _kill_group(leader: int) -> bool:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
