"""Keeps one run: starts its trainer, passes on a stop, and writes down how it ended. Standard library only.

    python -m sousa_engine.runs.keeper LOCK_FD GRACE_S RUN_DIR NONCE TRAINER_ARGV...

A supervisor may die and another take over; the run must not notice, and its end must be known. So each trainer has a
parent of its own that does nothing else. Liveness is a lock, not a pid: the supervisor takes keeper.lock, hands its
descriptor LOCK_FD to the keeper, the keeper hands it to the trainer, and the kernel drops it when the last of them
is gone. There is no moment between launch and end at which the lock is free.

If the keeper itself is killed, the kernel sends the trainer SIGTERM (Linux: PR_SET_PDEATHSIG): it saves a checkpoint,
writes result.json and ends. Not SIGKILL, which would throw away work because a bystander died. Should it hang, or
where there is no such signal (macOS), it still holds the lock, so the supervisor sees it and ends it.

SIGTERM to the keeper is "stop and save": SIGTERM to the trainer, and after GRACE_S SIGKILL to its group. SIGUSR1 is
"stop now": SIGKILL at once. Each step is noted in keeper.json when it is taken.

What happened is written to exit.json: {nonce, exit_code | null, signal | null, started_ms, ended_ms, steps, oom_kills,
oom_whose}. oom_kills: processes that the system killed meanwhile for want of memory, oom_whose: in our "cgroup" or on
the "machine"; null where nobody counts.
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
        # Handlers first: a stop that comes before the trainer is there must neither be lost nor kill us.
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
                stdin=subprocess.DEVNULL,  # stdout and stderr are ours: train.log. A pipe would die with its reader
                process_group=0,
                pass_fds=[self._lock_fd],
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                preexec_fn=_follow(os.getpid()),
            )
        except OSError as error:
            with contextlib.suppress(OSError):  # the log may be on a full disk: exit.json has its room
                print(f"{self._argv[0]} could not be started: {error}", file=sys.stderr)
            self._step(run_files.COULD_NOT_START)
            return COULD_NOT_START
        self._step(run_files.STARTED)
        self._pass_on_stop()  # one that came while the trainer was being born
        if self._kill_asked:
            self._signal_group(signal.SIGKILL)
        return None

    @property
    def _is_up(self) -> bool:
        return self._trainer is not None and self._trainer.returncode is None

    def _wait(self) -> int:
        """The trainer's return code, negative for a signal; nothing of its group is left when this returns."""
        assert self._trainer is not None
        pid = self._trainer.pid
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so that its pid cannot be anyone else's
        self._signal_group(signal.SIGKILL)  # data loader workers that it left behind
        with _no_signals():  # once it is reaped, a handler must know: its group's number may be another's
            return self._trainer.wait()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_asked = True
        self._pass_on_stop()

    def _pass_on_stop(self) -> None:
        if not self._is_up or not self._stop_asked or self._stop_passed_on:
            return
        assert self._trainer is not None
        self._stop_passed_on = True
        self._trainer.send_signal(signal.SIGTERM)  # to it alone: its workers are needed until the checkpoint stands
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
            self._write_note()  # now, so that a page can show it now

    def _write_note(self) -> None:
        # One at a time: a handler must not begin to write where it interrupted the writing of the one before.
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
                    raise  # nobody could know of this launch: better none
                with contextlib.suppress(OSError):  # the log is on the same full disk
                    print(f"{run_files.KEEPER} could not be written: {error}", file=sys.stderr)

    def _reserve_exit(self) -> None:
        """Take the room for exit.json now: a disk that is full later must not hide how the run ended."""
        with self._reserved.open("wb") as file:
            file.write(b" " * _RESERVED_BYTES)
            file.flush()
            os.fsync(file.fileno())

    def _write_exit(self, code: int | None) -> None:
        signal_number = -code if code is not None and code < 0 else None
        note = {"nonce": self._nonce, "exit_code": None if signal_number else code, "signal": signal_number}
        note |= {"started_ms": self._started_ms, "ended_ms": _now_ms(), "steps": self._steps}
        now = oom.kills()
        before = self._oom_kills
        counted = now is not None and before is not None and now.whose == before.whose
        note |= {"oom_kills": now.kills - before.kills, "oom_whose": now.whose} if counted else {"oom_kills": None}
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
    """What the child runs before it becomes the trainer: have it sent SIGTERM when this keeper dies."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork

    def follow() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(COULD_NOT_START)

    return follow


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Ours wait until the end of the block."""
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
