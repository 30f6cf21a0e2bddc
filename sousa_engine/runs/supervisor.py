"""One per workspace: claims queued runs, starts them, ingests their spools, and records how each one ended.

    python -m sousa_engine.runs.supervisor ROOT [--idle-exit-s N]

It may be killed at any moment: all it knows is in runs.db and in the run folders, and the next one continues from
there. Trainers never notice. A kernel lock on runs/supervisor.lock decides which process supervises.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from sousa_engine.core.errors import RunError, WorkspaceError
from sousa_engine.core.records import Attempt, Event, Run, RunStatus, SweepStatus
from sousa_engine.runs import ending
from sousa_engine.runs.executors import Executor, Sighting, device_of, slots
from sousa_engine.runs.executors.local import GRACE_S, TRAINER_MODULE, LocalExecutor, absence
from sousa_engine.store import Store, now_ms
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import Workspace, locks, run_files, spool

IDLE_EXIT_S = 60.0
MAX_ATTEMPTS = 3
_BUSY_S, _IDLE_S = 0.2, 0.5  # between two rounds
_STRANGE_ATTEMPT_S = 10.0  # for an attempt to appear that another supervisor was about to start
_KEEPER_S = 10.0  # for a keeper to end a run whose time to stop is over
_SWEEPS_S = 1.0  # between two steps of open sweeps
_REST_S, _MAX_ERRORS = 5.0, 5  # after an unexpected error with one run
_STEPS = {
    run_files.STARTED: "Started the trainer.",
    run_files.COULD_NOT_START: "The trainer could not be started.",
    run_files.SAVE: "Asked the trainer (SIGTERM) to save a checkpoint and exit.",
    run_files.GRACE_OVER: "Killed the trainer and its child processes (SIGKILL): it did not exit in time.",
    run_files.AT_ONCE: "Killed the trainer and its child processes (SIGKILL) without waiting.",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sousa_engine.runs.supervisor", description="Supervise one workspace."
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--idle-exit-s", type=float, default=IDLE_EXIT_S, help="exit after this long without a run")
    parser.add_argument("--grace-s", type=float, default=GRACE_S, help="time between a stop's SIGTERM and SIGKILL")
    parser.add_argument("--trainer-module", default=TRAINER_MODULE, help="run by python -m; tests put a double here")
    parser.add_argument("--lock-fd", type=int, help="descriptor of runs/supervisor.lock, already locked by the caller")
    options = parser.parse_args(argv)
    workspace = Workspace(root=options.root.resolve())
    workspace.make()
    lock = options.lock_fd if options.lock_fd is not None else locks.take(workspace.supervisor_lock)
    if lock is None:
        sys.exit(f"A supervisor of {workspace.root} is already running.")
    executor = LocalExecutor(workspace, trainer_module=options.trainer_module, grace_s=options.grace_s)
    leaving = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: leaving.set())
    try:
        while lock is not None and not leaving.is_set():
            locks.sign(lock)
            with Store.open(workspace, checkpoints=True) as store:
                Supervisor(store, executor, grace_s=options.grace_s).serve(options.idle_exit_s, leaving)
                Ledger(store).checkpoint_wal()
                # Release the lock first, then look at the queue: a caller that enqueued before the release found the
                # lock held and started no supervisor, so that run is ours; one that enqueues later starts its own.
                os.close(lock)
                lock = locks.take(workspace.supervisor_lock) if store.queue.waiting_devices() else None
    except WorkspaceError as error:
        sys.exit(str(error))


class Supervisor:
    """The loop without its process: tests pass their own executor and call `round`."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        *,
        grace_s: float = GRACE_S,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self._store = store
        self._ledger = Ledger(store)
        self._executor = executor
        self._grace_s = grace_s
        self._monotonic = monotonic
        self._submitted: set[str] = set()  # nonces that were submitted, or adopted
        self._submit_errors: dict[str, str] = {}
        self._first_seen: dict[str, float] = {}
        self._asked_to_stop: dict[str, float] = {}  # nonce -> when
        self._killed: dict[str, float] = {}
        self._overdue: set[str] = set()  # nonces whose keeper was killed: it did not end the run in time
        self._steps_recorded: dict[str, int] = {}  # nonce -> number of its keeper's steps that are events
        self._orphans: dict[str, float] = {}
        self._resting: dict[str, float] = {}  # run id -> when to try again after an unexpected error
        self._errors_of: dict[str, int] = {}
        self._sweeps_advanced_at = float("-inf")
        self._sweeping = False

    def serve(self, idle_exit_s: float, leaving: threading.Event) -> None:
        """Run rounds until there was nothing to do for `idle_exit_s`, whatever errors the disk or a run causes."""
        last_busy = self._monotonic()
        failing_since: float | None = None
        pause = _BUSY_S
        while not leaving.wait(pause):
            try:
                busy = self.round()
            except WorkspaceError as error:
                if failing_since is None:
                    failing_since = self._monotonic()
                    _log(str(error))
                pause = min(30.0, pause * 2)
                continue
            if failing_since is not None:
                self._record_recovery(self._monotonic() - failing_since)
                failing_since = None
            now = self._monotonic()
            if busy:
                last_busy = now
            elif now - last_busy >= idle_exit_s:
                return
            pause = _BUSY_S if busy else min(_IDLE_S, max(idle_exit_s, 0.01))

    def round(self) -> bool:
        """Advance every active run, then fill free slots. Returns whether any run is active or queued.

        Raises WorkspaceError if runs.db cannot be written now. Nothing is lost: the next round catches up.
        """
        live = self._store.queue.live()
        for action in (self._adopt, self._advance):  # adopt all first: a long backlog takes time
            for run in live:
                if self._resting.get(run.id, 0) <= self._monotonic():
                    self._guarded(run, action)
        self._advance_sweeps()
        waiting = self._store.queue.waiting_devices()
        if waiting:
            self._fill_slots(waiting)
        return bool(live or waiting or self._sweeping)

    def _advance_sweeps(self) -> None:
        now = self._monotonic()
        if now - self._sweeps_advanced_at < _SWEEPS_S:
            return
        self._sweeps_advanced_at = now
        self._sweeping = False
        for found in self._store.sweeps.all([SweepStatus.RUNNING]):
            try:
                from sousa_engine.runs import sweep_learner  # slow to import, and most supervisors see no sweep

                self._sweeping |= sweep_learner.step(self._store, found, self._slot_count())
            except WorkspaceError:
                raise
            except Exception as error:
                _log(f"sweep {found.id}:\n{traceback.format_exc()}")
                self._store.sweeps.set_status(
                    found.id, SweepStatus.FAILED, leaving=[SweepStatus.RUNNING], reason=f"Unexpected error: {error!r}"
                )

    def _slot_count(self) -> int:
        return len(slots(self._executor.devices(), self._store.queue.settings().cpu_slots))

    def _advance(self, run: Run) -> None:
        attempt = self._ledger.attempt(run.id)
        nonce = attempt.nonce
        assert nonce is not None  # a run on a slot was claimed, with a nonce
        sighting = self._executor.poll(run, nonce)
        if sighting.started_at_ms and run.started_at_ms is None:
            self._ledger.mark_running(run.id, nonce, started_at_ms=sighting.started_at_ms)
        if sighting.is_alive and run.id in self._submit_errors:
            # This attempt was refused: an earlier one holds the lock, and no process of ours will ever answer.
            if run.status is RunStatus.STOPPING or self._seen_for(nonce) > _STRANGE_ATTEMPT_S:
                self._attempt_failed(run, nonce)
        elif sighting.is_alive:
            self._record_steps(run, nonce, sighting)
            self._steer(run, nonce, sighting)
            self._ingest(run, attempt, batches=1)  # the rest in later rounds: a stop must not wait for it
        elif sighting.trainer_started or sighting.exit or sighting.result or run.status is RunStatus.RUNNING:
            self._end(run, nonce, sighting)
        elif nonce in self._submitted or self._seen_for(nonce) > _STRANGE_ATTEMPT_S:
            self._attempt_failed(run, nonce)

    def _steer(self, run: Run, nonce: str, sighting: Sighting) -> None:
        """Pass on a stop, step by step. The keeper takes the steps itself; for an orphan, we do."""
        late, now = False, self._monotonic()
        if sighting.is_orphan:
            if nonce not in self._orphans:
                self._orphans[nonce] = now
                self._ledger.add_event(
                    run.id, "keeper lost", "Its keeper was killed; asked the trainer to save and stop."
                )
            late = now - self._orphans[nonce] > self._grace_s
        asked_at, killed_at = self._asked_to_stop.get(nonce, now), self._killed.get(nonce, now)
        if now - asked_at > self._grace_s + _KEEPER_S or now - killed_at > _KEEPER_S:
            if self._executor.kill(run, nonce) and nonce not in self._overdue:
                self._overdue.add(nonce)
                message = "Killed the keeper (SIGKILL): it was suspended or hung, and did not end the run in time."
                self._ledger.add_event(run.id, "keeper", message)
            return
        if run.kill_requested_at_ms is not None or late:
            if nonce not in self._killed and self._executor.stop(run, nonce, now=True):
                self._killed[nonce] = now
                if sighting.is_orphan:
                    step = run_files.GRACE_OVER if late else run_files.AT_ONCE
                    self._ledger.add_event(run.id, "keeper", _STEPS[step])
            return
        asked = sighting.is_orphan or run.status is RunStatus.STOPPING
        if asked and nonce not in self._asked_to_stop and self._executor.stop(run, nonce):
            self._asked_to_stop[nonce] = now

    def _end(self, run: Run, nonce: str, sighting: Sighting) -> None:
        """Ingest all that an attempt left, then record how it ended: in this order, so that a crash repeats both."""
        folder = self._store.workspace.run_dir(run.id)
        offset = self._ingest(run, self._ledger.attempt(run.id))
        self._record_steps(run, nonce, sighting)
        events = []
        ended_at_ms = sighting.exit["ended_ms"] if sighting.exit else self._last_sign_ms(run, sighting)
        torn = run_files.size(folder / run_files.SPOOL) - offset
        if torn > 0:
            message = f"Ignored the last {torn} bytes of {run_files.SPOOL}: an incomplete line."
            events.append(Event(at_ms=ended_at_ms, kind="unreadable", message=message))
        try:
            predictions = spool.read_predictions(folder / run_files.PREDICTIONS)
        except ValueError as error:
            events.append(Event(at_ms=ended_at_ms, kind="unreadable", message=str(error)))
        else:
            self._ledger.save_predictions(run.id, predictions)
        status, reason = ending.read(
            run, sighting, last_log_line=(run_files.tail(folder / run_files.LOG, 1) or [""])[-1]
        )
        if status is RunStatus.LOST and nonce in self._overdue:
            status, reason = RunStatus.STOPPED, ending.KILLED_LATE
        elif status is RunStatus.LOST and nonce in self._orphans:
            status, reason = RunStatus.FAILED, "Its keeper was killed, and the trainer ended without a result."
        elif status is RunStatus.LOST:
            reason = f"{reason} {self._last_seen(run)}"
        self._ledger.finish(run.id, status, reason, nonce=nonce, ended_at_ms=ended_at_ms, events=events)

    def _adopt(self, run: Run) -> None:
        """Record once that a run was started by another supervisor, if its trainer is alive."""
        nonce = self._ledger.attempt(run.id).nonce
        if nonce is None or nonce in self._submitted:
            return
        sighting = self._executor.poll(run, nonce)
        if sighting.is_alive:
            self._submitted.add(nonce)
            if sighting.trainer_started:
                self._ledger.add_event(run.id, "adopted", "A new supervisor took over; training was not interrupted.")

    def _record_steps(self, run: Run, nonce: str, sighting: Sighting) -> None:
        """Record the keeper's steps as events, at the keeper's times, and each once whoever supervises."""
        if len(sighting.steps) > self._steps_recorded.get(nonce, 0):
            steps = [
                Event(at_ms=step["at_ms"], kind="keeper", message=_STEPS.get(step["step"], f"Trainer: {step['step']}."))
                for step in sighting.steps
            ]
            self._ledger.add_events_once(run.id, steps)
            self._steps_recorded[nonce] = len(sighting.steps)

    def _attempt_failed(self, run: Run, nonce: str) -> None:
        why = self._submit_errors.pop(run.id, f"its keeper died before the trainer started (see {run_files.LOG})")
        if run.status is RunStatus.STOPPING:
            self._ledger.finish(run.id, RunStatus.STOPPED, "Stopped before it started.", nonce=nonce)
        elif run.attempts >= MAX_ATTEMPTS:
            reason = f"Could not be started in {run.attempts} attempts: {why}."
            self._ledger.finish(run.id, RunStatus.FAILED, reason, nonce=nonce)
        else:
            self._ledger.requeue(run.id, nonce, f"Attempt {run.attempts} of {MAX_ATTEMPTS} failed: {why}.")

    def _fill_slots(self, waiting: Sequence[str]) -> None:
        devices = self._executor.devices()
        held = {run.device for run in self._store.queue.live()}
        if any(device not in devices and device != "auto" for device in waiting):
            devices = self._executor.devices(fresh=True)
            for run in self._store.queue.waiting():
                if run.device not in devices and run.device != "auto":
                    self._ledger.finish(run.id, RunStatus.FAILED, absence(run.device), nonce=None)
        best = devices[0].partition(":")[0]
        cpu_slots = self._store.queue.settings().cpu_slots
        for slot in slots(devices, cpu_slots):
            if slot in held:
                continue
            nonce = secrets.token_hex(8)
            device = device_of(slot)
            wanted = [device, "auto"] if device.partition(":")[0] == best else [device]
            run = self._ledger.claim(slot, nonce, wanted)
            if run is not None:
                self._guarded(run, lambda run, nonce=nonce: self._submit(run, nonce, cpu_slots))

    def _submit(self, run: Run, nonce: str, cpu_slots: int) -> None:
        if run.unreadable:
            self._ledger.finish(run.id, RunStatus.FAILED, run.unreadable, nonce=nonce)
            return
        # A power cut may have lost the end of a spool that runs.db has: new lines take its place.
        end = spool.end_of(self._store.workspace.run_dir(run.id) / run_files.SPOOL)
        if end < self._ledger.attempt(run.id).spool_offset:
            self._ledger.read_spool_again_from(run.id, end)
        try:
            self._executor.submit(run, nonce, cpu_slots=cpu_slots)
        except (RunError, OSError) as error:
            self._submit_errors[run.id] = str(error).rstrip(".")
        self._submitted.add(nonce)  # from here on, an attempt that is not alive will never be

    def _ingest(self, run: Run, attempt: Attempt, batches: int | None = None) -> int:
        """Ingest the rest of the spool, or that many batches. Returns the offset reached."""
        path = self._store.workspace.run_dir(run.id) / run_files.SPOOL
        offset = attempt.spool_offset
        for _ in itertools.count() if batches is None else range(batches):
            if (batch := spool.read_batch(path, offset)).is_empty:
                break
            if not self._ledger.ingest(run.id, batch):
                return self._ledger.attempt(run.id).spool_offset  # ingested by another process in the meantime
            offset = batch.end
        return offset

    def _guarded(self, run: Run, action: Callable[[Run], None]) -> None:
        """An unexpected error with one run is recorded and tried again; the other runs continue."""
        try:
            action(run)
        except WorkspaceError:
            raise
        except Exception as error:
            _log(f"run {run.id}:\n{traceback.format_exc()}")
            if run.id not in self._resting:
                self._ledger.add_event(run.id, "supervisor", f"Unexpected error, will be tried again: {error!r}")
            self._resting[run.id] = self._monotonic() + _REST_S
            self._errors_of[run.id] = self._errors_of.get(run.id, 0) + 1
            if self._errors_of[run.id] >= _MAX_ERRORS:
                self._give_up(run, error)

    def _give_up(self, run: Run, error: Exception) -> None:
        """End a run that is not alive although its files cannot be ingested: that frees its slot."""
        nonce = self._ledger.attempt(run.id).nonce
        try:
            is_dead = nonce is not None and not self._executor.poll(run, nonce).is_alive
        except Exception:  # this was the error: it may be alive, so it keeps its slot
            return
        if is_dead:
            reason = f"The run ended, but its results could not be ingested: {error!r}. See its folder."
            self._ledger.finish(run.id, RunStatus.FAILED, reason, nonce=nonce)

    def _record_recovery(self, seconds: float) -> None:
        message = f"runs.db could not be written for {seconds:.0f} s. It can be written again; nothing was lost."
        _log(message)
        for run in self._store.queue.live():
            self._ledger.add_event(run.id, "storage", message)

    def _last_sign_ms(self, run: Run, sighting: Sighting) -> int:
        """When it last wrote a file: without a recorded end, the time until we noticed is not training time."""
        folder = self._store.workspace.run_dir(run.id)
        written = [
            at
            for name in (run_files.RESULT, run_files.SPOOL)
            if (at := run_files.written_ms(folder / name)) is not None
        ]
        started = sighting.started_at_ms or run.started_at_ms or 0
        return min(now_ms(), max(started, *written)) if written else now_ms()

    def _last_seen(self, run: Run) -> str:
        """The last known state of a run, from its files and its row, as a sentence."""
        seen_ms = run_files.written_ms(self._store.workspace.run_dir(run.id) / run_files.SPOOL)
        when = f" at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seen_ms / 1000))}" if seen_ms else ""
        summaries = self._store.metrics.summaries([run.id])[run.id].values()
        newest = max(summaries, key=lambda summary: summary.last_step, default=None)
        if newest is not None:
            value = "" if newest.last is None else f", {newest.metric} {newest.last:.4g}"
            return f"Last seen{when} at step {newest.last_step}{value}."
        fresh = self._store.runs.get(run.id) or run  # with what was just ingested
        if fresh.progress is not None:
            return f"Last seen{when} {fresh.progress.phase}, {fresh.progress.done} of {fresh.progress.total}."
        return "It had not measured anything yet."

    def _seen_for(self, nonce: str) -> float:
        now = self._monotonic()
        return now - self._first_seen.setdefault(nonce, now)


def _log(text: str) -> None:
    try:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)
    except OSError:
        pass  # the log is on the same full disk


if __name__ == "__main__":
    main()
