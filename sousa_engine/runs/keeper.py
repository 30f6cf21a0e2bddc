"""Keeps one run: starts its trainer, passes on a stop, and writes down how it ended. Standard library only.

    python -m sousa_engine.runs.keeper LOCK_FD GRACE_S RUN_DIR NONCE TRAINER_ARGV...

A supervisor may die and another one take over; the run must not notice, and its end must be known. So each trainer has
a parent that does nothing else. Liveness is a lock, not a pid: the supervisor takes keeper.lock, hands its
descriptor LOCK_FD to the keeper, the keeper hands it to the trainer, and the kernel drops it when the last of them
is gone. From the start of an attempt to its end, the lock is never free.

If the keeper itself is killed, the kernel sends the trainer SIGTERM (Linux: PR_SET_PDEATHSIG): it saves a checkpoint,
writes result.json and exits. Not SIGKILL: that would lose work because a bystander died. If it hangs, or if there is no
such signal (macOS), it still holds the lock, so the supervisor sees it and ends it.

SIGTERM to the keeper is "stop and save": SIGTERM to the trainer, and after GRACE_S SIGKILL to its group. SIGUSR1 is
"stop now": SIGKILL at once. Each step is written to keeper.json when it is taken.

The end is written to exit.json: {nonce, exit_code | null, signal | null, started_ms, ended_ms, steps, oom_kills,
oom_whose}. oom_kills: processes that the system killed in the meantime because memory ran out; oom_whose: counted in
our "cgroup" or on the "machine"; null if there is no counter.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from sousa_engine.workspace import oom, run_files

COULD_NOT_START = 127
_PR_SET_PDEATHSIG = 1
_RESERVED_BYTES = 4096


class Keeper:
    def __init__(self, lock_fd: int, grace_s: float, run_dir: Path, nonce: str, argv: list[str]):
        self._lock_fd = lock_fd
        self._grace_s = grace_s  # from SIGTERM to SIGKILL
        self._run_dir = run_dir
        self._nonce = nonce
        self._argv = argv
        self._trainer: subprocess.Popen[bytes] | None = None
        self._started_ms = _now_ms()
        self._steps: list[dict[str, Any]] = []
        self._stop_asked = False
        self._stop_passed_on = False
        self._kill_asked = False
        self._oom_kills = oom.kills()

    def run(self) -> None:
        # Handlers first: a stop that arrives before the trainer exists must neither be lost nor kill us.
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_kill)
        signal.signal(signal.SIGALRM, self._on_grace_over)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        self._reserve_exit()
        self._write_note()
        code = None if self._stop_asked or self._kill_asked else self._start()
        if self._trainer:
            code = self._wait()
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._write_exit(code)

    def _start(self) -> int | None:
        try:
            self._trainer = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,  # stdout and stderr are ours, train.log: a pipe would die with its reader
                process_group=0,
                pass_fds=[self._lock_fd],
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                preexec_fn=_follow(os.getpid()),
            )
        except OSError as error:
            with contextlib.suppress(OSError):  # the log may be on a full disk; the room for exit.json is reserved
                print(f"{self._argv[0]} could not be started: {error}", file=sys.stderr)
            self._step(run_files.COULD_NOT_START)
            return COULD_NOT_START
        self._step(run_files.STARTED)
        self._pass_on_stop()  # one that arrived while the trainer was being started
        if self._kill_asked:
            self._signal_group(signal.SIGKILL)
        return None

    @property
    def _is_up(self) -> bool:
        return self._trainer is not None and self._trainer.returncode is None

    def _wait(self) -> int:
        """The trainer's return code, negative for a signal. When this returns, its process group is gone."""
        assert self._trainer is not None
        pid = self._trainer.pid
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so that its pid cannot be reused
        self._signal_group(signal.SIGKILL)  # data loader workers that it left running
        with _no_signals():  # a handler must not signal its group once it is reaped: the number may be reused
            return self._trainer.wait()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_asked = True
        self._pass_on_stop()

    def _pass_on_stop(self) -> None:
        if not self._is_up or not self._stop_asked or self._stop_passed_on:
            return
        assert self._trainer is not None
        self._stop_passed_on = True
        self._trainer.send_signal(signal.SIGTERM)  # not to its workers: they are needed until the checkpoint is written
        signal.setitimer(signal.ITIMER_REAL, self._grace_s)
        self._step(run_files.SAVE)

    def _on_grace_over(self, number: int, frame: FrameType | None) -> None:
        self._signal_group(signal.SIGKILL)
        self._step(run_files.GRACE_OVER)

    def _on_kill(self, number: int, frame: FrameType | None) -> None:
        if self._kill_asked:
            return
        self._kill_asked = True
        self._signal_group(signal.SIGKILL)
        self._step(run_files.AT_ONCE)

    def _signal_group(self, number: int) -> None:
        if not self._is_up:
            return
        assert self._trainer is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, for a lone zombie
            os.killpg(self._trainer.pid, number)

    def _step(self, what: str) -> None:
        self._steps.append({"at_ms": _now_ms(), "step": what})
        if self._trainer:
            self._write_note()  # so that a page can show the step at once

    def _write_note(self) -> None:
        # One at a time: a handler must not start to write while it interrupts another write.
        with _no_signals():
            note = {
                "nonce": self._nonce,
                "pid": os.getpid(),
                "trainer_pid": self._trainer.pid if self._trainer else None,
                "started_ms": self._started_ms,
                "boot_id": run_files.boot_id(),
                "steps": self._steps,
                "argv": self._argv,
            }
            try:
                run_files.write_json(self._run_dir / run_files.KEEPER, note)
            except OSError as error:
                if self._trainer is None:
                    raise  # without its note, the attempt could not be found: do not start it
                with contextlib.suppress(OSError):  # the log is on the same full disk
                    print(f"{run_files.KEEPER} could not be written: {error}", file=sys.stderr)

    def _reserve_exit(self) -> None:
        """Reserve room for exit.json now: a disk that fills up later must not hide how the run ended."""
        with self._reserved.open("wb") as file:
            file.write(b" " * _RESERVED_BYTES)
            file.flush()
            os.fsync(file.fileno())

    def _write_exit(self, code: int | None) -> None:
        signal_number = -code if code is not None and code < 0 else None
        note = {"nonce": self._nonce, "exit_code": None if signal_number else code, "signal": signal_number}
        note |= {"started_ms": self._started_ms, "ended_ms": _now_ms(), "steps": self._steps}
        now, before = oom.kills(), self._oom_kills
        if now is not None and before is not None and now.whose == before.whose:
            note |= {"oom_kills": now.kills - before.kills, "oom_whose": now.whose}
        else:
            note |= {"oom_kills": None}
        with self._reserved.open("r+b") as file:
            file.write(json.dumps(note).encode())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._reserved.replace(self._run_dir / run_files.EXIT)
        run_files.sync_folder(self._run_dir)

    @property
    def _reserved(self) -> Path:
        return self._run_dir / f".{run_files.EXIT}.reserved"


def _follow(parent: int) -> Callable[[], None] | None:
    """Run by the child before it becomes the trainer: the kernel then sends it SIGTERM when this keeper dies."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork

    def follow() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # the keeper died before the line above
            os._exit(COULD_NOT_START)

    return follow


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Hold our signals back until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main() -> None:
    lock_fd, grace_s, run_dir, nonce, *argv = sys.argv[1:]
    Keeper(int(lock_fd), float(grace_s), Path(run_dir), nonce, argv).run()


if __name__ == "__main__":
    main()
