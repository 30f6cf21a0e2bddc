"""One a workspace: claims queued runs, has them started, ingests their spools, and says how each one ended.

    python -m sousa_engine.runs.supervisor ROOT [--idle-exit-s N]

It may be killed at any moment: what it knows stands in runs.db and in the runs' folders, and the next one goes on from
there. Trainings never notice. Which one supervises is settled by a kernel lock on runs/supervisor.lock.
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
from sousa_engine.runs import ending, sweep_learner
from sousa_engine.runs.executors import Executor, Sighting, device_of, slots
from sousa_engine.runs.executors.local import GRACE_S, TRAINER_MODULE, LocalExecutor, absence
from sousa_engine.store import Store, now_ms
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import Workspace, locks, run_files
from sousa_engine.workspace.spool import read_batch, read_predictions

IDLE_EXIT_S = 60.0
MAX_LAUNCHES = 3
_BUSY_S, _IDLE_S = 0.2, 0.5  # between two rounds
_STRANGE_LAUNCH_S = 10.0  # a launch that another supervisor was about to make gets this long to show itself
_SWEEPS_S = 1.0  # between two looks at open sweeps
_REST_S, _MAX_TROUBLES = 5.0, 5  # after an unforeseen error with one run
_STEPS = {
    run_files.STARTED: "The trainer was started.",
    run_files.COULD_NOT_START: "The trainer could not be started.",
    run_files.SAVE: "SIGTERM to the trainer: it is to save a checkpoint and exit.",
    run_files.GRACE_OVER: "SIGKILL to the trainer and all it started: it did not exit in time.",
    run_files.AT_ONCE: "SIGKILL to the trainer and all it started, at once.",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sousa_engine.runs.supervisor", description="Supervise one workspace."
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--idle-exit-s", type=float, default=IDLE_EXIT_S, help="leave after so long without a run")
    parser.add_argument("--grace-s", type=float, default=GRACE_S, help="from a stop's SIGTERM to SIGKILL")
    parser.add_argument("--trainer-module", default=TRAINER_MODULE, help="run by python -m; tests put a double here")
    parser.add_argument("--lock-fd", type=int, help="runs/supervisor.lock, locked already by who started us")
    options = parser.parse_args(argv)
    workspace = Workspace(root=options.root.resolve())
    workspace.runs.mkdir(parents=True, exist_ok=True)
    lock = options.lock_fd if options.lock_fd is not None else locks.take(workspace.supervisor_lock)
    if lock is None:
        sys.exit(f"A supervisor of {workspace.root} is running already.")
    executor = LocalExecutor(workspace, trainer_module=options.trainer_module, grace_s=options.grace_s)
    leaving = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: leaving.set())
    try:
        while lock is not None and not leaving.is_set():
            locks.sign(lock)
            with Store.open(workspace, checkpoints=True) as store:
                Supervisor(store, executor, grace_s=options.grace_s).serve(options.idle_exit_s, leaving)
                Ledger(store).checkpoint_wal()
                # Drop the lock first, look at the queue second: who enqueued before we let go found the lock held and
                # started nobody, so its run is ours to see; who enqueues after starts a supervisor of its own.
                os.close(lock)
                lock = locks.take(workspace.supervisor_lock) if store.queue.waiting_devices() else None
    except WorkspaceError as error:
        sys.exit(str(error))


class Supervisor:
    """The loop without its process: tests give it an executor of their own and call `round`."""

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
        self._launched: set[str] = set()  # nonces whose submit is behind us
        self._launch_errors: dict[str, str] = {}
        self._first_seen: dict[str, float] = {}
        self._told_to_stop: set[str] = set()
        self._told_to_die: set[str] = set()
        self._steps_told: dict[str, int] = {}  # nonce -> how many steps of its keeper are events already
        self._orphans: dict[str, float] = {}
        self._resting: dict[str, float] = {}  # run id -> when to try again after an unforeseen error
        self._troubles: dict[str, int] = {}
        self._sweeps_seen_at = float("-inf")
        self._sweeping = False

    def serve(self, idle_exit_s: float, leaving: threading.Event) -> None:
        """Rounds until nothing was to do for `idle_exit_s`. No error of the disk or of one run ends it."""
        last_busy = self._monotonic()
        trouble_since: float | None = None
        pause = _BUSY_S
        while not leaving.wait(pause):
            try:
                busy = self.round()
            except WorkspaceError as error:
                if trouble_since is None:
                    trouble_since = self._monotonic()
                    _say(str(error))
                pause = min(30.0, pause * 2)
                continue
            if trouble_since is not None:
                self._tell_recovery(self._monotonic() - trouble_since)
                trouble_since = None
            now = self._monotonic()
            if busy:
                last_busy = now
            elif now - last_busy >= idle_exit_s:
                return
            pause = _BUSY_S if busy else min(_IDLE_S, max(idle_exit_s, 0.01))

    def round(self) -> bool:
        """See to every live run, then fill free slots. True while any run lives or waits.

        Raises WorkspaceError if runs.db cannot be written now: nothing is lost, the next round does it.
        """
        live = self._store.queue.live()
        for action in (self._adopt, self._see_to):  # all are adopted before one's backlog is taken in: that takes long
            for run in live:
                if self._resting.get(run.id, 0) <= self._monotonic():
                    self._guarded(run, action)
        self._see_to_sweeps()
        waiting = self._store.queue.waiting_devices()
        if waiting:
            self._fill_slots(waiting)
        return bool(live or waiting or self._sweeping)

    def _see_to_sweeps(self) -> None:
        now = self._monotonic()
        if now - self._sweeps_seen_at < _SWEEPS_S:
            return
        self._sweeps_seen_at = now
        self._sweeping = False
        for found in self._store.sweeps.all([SweepStatus.RUNNING]):
            try:
                self._sweeping |= sweep_learner.step(self._store, found, self._slot_count())
            except WorkspaceError:
                raise
            except Exception as error:
                _say(f"sweep {found.id}:\n{traceback.format_exc()}")
                self._store.sweeps.set_status(
                    found.id, SweepStatus.FAILED, leaving=[SweepStatus.RUNNING], reason=f"Unforeseen: {error!r}"
                )

    def _slot_count(self) -> int:
        return len(slots(self._executor.devices(), self._store.queue.settings().cpu_slots))

    def _see_to(self, run: Run) -> None:
        launch = self._ledger.attempt(run.id)
        nonce = launch.nonce
        assert nonce is not None  # a run on a slot was claimed, with a nonce
        sighting = self._executor.poll(run, nonce)
        if sighting.started_at_ms and run.started_at_ms is None:
            self._ledger.mark_running(run.id, nonce, started_at_ms=sighting.started_at_ms)
        if sighting.is_alive and run.id in self._launch_errors:
            # This launch was refused: what holds the lock is of an earlier one, and nothing of ours will ever answer.
            if run.status is RunStatus.STOPPING or self._seen_for(nonce) > _STRANGE_LAUNCH_S:
                self._launch_failed(run, nonce)
        elif sighting.is_alive:
            self._tell_steps(run, nonce, sighting)
            self._steer(run, nonce, sighting)
            self._ingest(run, launch, batches=1)  # the rest in the next rounds: a stop is not to wait for it
        elif sighting.trainer_started or sighting.exit or sighting.result or run.status is RunStatus.RUNNING:
            self._end(run, nonce, sighting)
        elif nonce in self._launched or self._seen_for(nonce) > _STRANGE_LAUNCH_S:
            self._launch_failed(run, nonce)

    def _steer(self, run: Run, nonce: str, sighting: Sighting) -> None:
        """The ladder of a stop. Its keeper climbs it by itself; of an orphan, we are the keeper."""
        late = False
        if sighting.is_orphan:
            if nonce not in self._orphans:
                self._orphans[nonce] = self._monotonic()
                self._ledger.add_event(run.id, "keeper lost", "Its keeper was killed: the trainer is to save and stop.")
            late = self._monotonic() - self._orphans[nonce] > self._grace_s
        if run.kill_requested_at_ms is not None or late:
            if nonce not in self._told_to_die and self._executor.stop(run, nonce, now=True):
                self._told_to_die.add(nonce)
                if sighting.is_orphan:
                    step = run_files.GRACE_OVER if late else run_files.AT_ONCE
                    self._ledger.add_event(run.id, "keeper", _STEPS[step])
            return
        asked = sighting.is_orphan or run.status is RunStatus.STOPPING
        if asked and nonce not in self._told_to_stop and self._executor.stop(run, nonce):
            self._told_to_stop.add(nonce)

    def _end(self, run: Run, nonce: str, sighting: Sighting) -> None:
        """Take everything the dead launch left, then write its end: in that order, so that a crash repeats it."""
        folder = self._store.workspace.run_dir(run.id)
        offset = self._ingest(run, self._ledger.attempt(run.id))
        self._tell_steps(run, nonce, sighting)
        events = []
        ended_at_ms = sighting.exit["ended_ms"] if sighting.exit else self._last_sign_ms(run, sighting)
        torn = run_files.size(folder / run_files.SPOOL) - offset
        if torn > 0:
            message = f"The last {torn} bytes of {run_files.SPOOL} are a line that was never finished: left out."
            events.append(Event(at_ms=ended_at_ms, kind="unreadable", message=message))
        try:
            predictions = read_predictions(folder / run_files.PREDICTIONS)
        except ValueError as error:
            events.append(Event(at_ms=ended_at_ms, kind="unreadable", message=str(error)))
        else:
            self._ledger.save_predictions(run.id, predictions)
        status, reason = ending.read(
            run, sighting, last_log_line=(run_files.tail(folder / run_files.LOG, 1) or [""])[-1]
        )
        if status is RunStatus.LOST and nonce in self._orphans:
            status, reason = RunStatus.FAILED, "Its keeper was killed, and the trainer ended without a result."
        elif status is RunStatus.LOST:
            reason = f"{reason} {self._last_seen(run)}"
        self._ledger.finish(run.id, status, reason, nonce=nonce, ended_at_ms=ended_at_ms, events=events)

    def _adopt(self, run: Run) -> None:
        """Once, of a run that another supervisor launched: say so, if its trainer lives."""
        nonce = self._ledger.attempt(run.id).nonce
        if nonce is None or nonce in self._launched:
            return
        sighting = self._executor.poll(run, nonce)
        if sighting.is_alive:
            self._launched.add(nonce)
            if sighting.trainer_started:
                self._ledger.add_event(run.id, "adopted", "A new supervisor found it alive; it never noticed.")

    def _tell_steps(self, run: Run, nonce: str, sighting: Sighting) -> None:
        """What its keeper did, as events with the keeper's own times; each once, whoever supervised meanwhile."""
        if len(sighting.steps) > self._steps_told.get(nonce, 0):
            told = [
                Event(at_ms=step["at_ms"], kind="keeper", message=_STEPS.get(step["step"], f"Trainer: {step['step']}."))
                for step in sighting.steps
            ]
            self._ledger.add_events_once(run.id, told)
            self._steps_told[nonce] = len(sighting.steps)

    def _launch_failed(self, run: Run, nonce: str) -> None:
        why = self._launch_errors.pop(run.id, f"its keeper died before the trainer started (see {run_files.LOG})")
        if run.status is RunStatus.STOPPING:
            self._ledger.finish(run.id, RunStatus.STOPPED, "Stopped before it started.", nonce=nonce)
        elif run.attempts >= MAX_LAUNCHES:
            self._ledger.finish(run.id, RunStatus.FAILED, f"Not started in {run.attempts} tries: {why}.", nonce=nonce)
        else:
            self._ledger.requeue(run.id, nonce, f"Launch {run.attempts} of {MAX_LAUNCHES} failed: {why}.")

    def _fill_slots(self, waiting: Sequence[str]) -> None:
        devices = self._executor.devices()
        held = {run.device for run in self._store.queue.live()}
        if any(device not in devices and device != "auto" for device in waiting):
            devices = self._executor.devices(fresh=True)
            for run in self._store.runs.all(RunStatus.QUEUED):
                if run.config.device not in devices and run.config.device != "auto":
                    self._ledger.finish(run.id, RunStatus.FAILED, absence(run.config.device), nonce=None)
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
                self._guarded(run, lambda run, nonce=nonce: self._launch(run, nonce, cpu_slots))

    def _launch(self, run: Run, nonce: str, cpu_slots: int) -> None:
        # A machine that lost power may have lost the end of a spool that runs.db kept: new lines stand there now.
        spool_bytes = run_files.size(self._store.workspace.run_dir(run.id) / run_files.SPOOL)
        if spool_bytes < self._ledger.attempt(run.id).spool_offset:
            self._ledger.read_spool_again_from(run.id, spool_bytes)
        try:
            self._executor.submit(run, nonce, cpu_slots=cpu_slots)
        except (RunError, OSError) as error:
            self._launch_errors[run.id] = str(error).rstrip(".")
        self._launched.add(nonce)  # from here on, a launch that is not alive never will be

    def _ingest(self, run: Run, launch: Attempt, batches: int | None = None) -> int:
        """All that the spool has by now, or as many batches; returns the offset reached."""
        spool = self._store.workspace.run_dir(run.id) / run_files.SPOOL
        offset = launch.spool_offset
        for _ in itertools.count() if batches is None else range(batches):
            if (batch := read_batch(spool, offset)).is_empty:
                break
            if not self._ledger.ingest(run.id, batch):
                return self._ledger.attempt(run.id).spool_offset  # taken by someone else meanwhile
            offset = batch.end
        return offset

    def _guarded(self, run: Run, action: Callable[[Run], None]) -> None:
        """One run's unforeseen trouble is written down and tried again; the others go on."""
        try:
            action(run)
        except WorkspaceError:
            raise
        except Exception as error:
            _say(f"run {run.id}:\n{traceback.format_exc()}")
            if run.id not in self._resting:
                self._ledger.add_event(run.id, "supervisor", f"Trouble, will be tried again: {error!r}")
            self._resting[run.id] = self._monotonic() + _REST_S
            self._troubles[run.id] = self._troubles.get(run.id, 0) + 1
            if self._troubles[run.id] >= _MAX_TROUBLES:
                self._give_up(run, error)

    def _give_up(self, run: Run, error: Exception) -> None:
        """A dead run whose leavings cannot be taken ends all the same, and frees its slot."""
        nonce = self._ledger.attempt(run.id).nonce
        try:
            is_dead = nonce is not None and not self._executor.poll(run, nonce).is_alive
        except Exception:  # that was the trouble: whether it lives cannot be told, so it keeps its slot
            return
        if is_dead:
            reason = f"It is over, but what it left could not be taken in: {error!r}. See its folder."
            self._ledger.finish(run.id, RunStatus.FAILED, reason, nonce=nonce)

    def _tell_recovery(self, seconds: float) -> None:
        message = f"runs.db could not be written for {seconds:.0f} s. It can again, and nothing is missing."
        _say(message)
        for run in self._store.queue.live():
            self._ledger.add_event(run.id, "storage", message)

    def _last_sign_ms(self, run: Run, sighting: Sighting) -> int:
        """When it last wrote: of an end that nobody noted, the time without anyone to see it is no time it trained."""
        folder = self._store.workspace.run_dir(run.id)
        written = [
            at
            for name in (run_files.RESULT, run_files.SPOOL)
            if (at := run_files.written_ms(folder / name)) is not None
        ]
        started = sighting.started_at_ms or run.started_at_ms or 0
        return min(now_ms(), max(started, *written)) if written else now_ms()

    def _last_seen(self, run: Run) -> str:
        """The newest that its files and its row tell, as a sentence."""
        seen_ms = run_files.written_ms(self._store.workspace.run_dir(run.id) / run_files.SPOOL)
        when = f" at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seen_ms / 1000))}" if seen_ms else ""
        summaries = self._store.metrics.summaries([run.id])[run.id].values()
        newest = max(summaries, key=lambda summary: summary.last_step, default=None)
        if newest is not None:
            value = "" if newest.last is None else f", {newest.metric} {newest.last:.4g}"
            return f"Last seen{when} at step {newest.last_step}{value}."
        fresh = self._store.runs.get(run.id) or run  # with what was just taken of its spool
        if fresh.progress is not None:
            return f"Last seen{when} {fresh.progress.phase}, {fresh.progress.done} of {fresh.progress.total}."
        return "It had measured nothing yet."

    def _seen_for(self, nonce: str) -> float:
        now = self._monotonic()
        return now - self._first_seen.setdefault(nonce, now)


def _say(text: str) -> None:
    try:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)
    except OSError:
        pass  # the log is on the same full disk


if __name__ == "__main__":
    main()
