"""The supervisor's decisions, in one process and without waiting: an executor that says what it is told to say."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from sousa_engine.core.config import RunConfig, build
from sousa_engine.core.errors import RunError, WorkspaceError
from sousa_engine.core.records import Prediction, Progress, RunStatus
from sousa_engine.runs import ensure, supervisor
from sousa_engine.runs.ending import read
from sousa_engine.runs.executors import Sighting, local
from sousa_engine.runs.supervisor import Supervisor
from sousa_engine.store import now_ms
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import locks, run_files, spool
from sousa_engine.workspace.spool import SpoolWriter, write_predictions

ABSENT = Sighting(is_alive=False)
ALIVE = Sighting(is_alive=True, trainer_started=True, started_at_ms=5)
ORPHAN = Sighting(is_alive=True, is_orphan=True, trainer_started=True, started_at_ms=5)


def ended(code=None, number=None, *, steps=(), oom_kills=None, whose="cgroup", result=None):
    note = {"exit_code": code, "signal": number, "started_ms": 5, "ended_ms": 9, "oom_kills": oom_kills}
    note |= {} if oom_kills is None else {"oom_whose": whose}
    return Sighting(
        is_alive=False, trainer_started=True, started_at_ms=5, steps=taken("started", *steps), exit=note, result=result
    )


def taken(*steps):
    return [{"at_ms": 6 + i, "step": step} for i, step in enumerate(steps)]


FINISHED = ended(0, result={"outcome": "finished", "reason": None})


class ScriptedExecutor:
    def __init__(self, *devices):
        self._devices = devices or ("cpu",)
        self.shares = []
        self.submitted, self.stops, self.sightings, self.refusal = [], [], {}, None
        self.reachable = True

    def devices(self, *, fresh=False):
        return self._devices

    def submit(self, run, nonce, *, cpu_slots=1):
        self.submitted.append(run.id)
        self.shares.append(cpu_slots)
        if self.refusal:
            raise self.refusal

    def poll(self, run, nonce):
        return self.sightings.get(run.id, ABSENT)

    def stop(self, run, nonce, *, now=False):
        self.stops.append((run.id, now))
        return self.reachable

    def kill(self, run, nonce):
        self.stops.append((run.id, "kill"))
        return True


class Studio:
    """A store, a scripted executor, a clock that only we move, and a supervisor over them."""

    def __init__(self, store, *devices):
        self.store, self.executor, self.now = store, ScriptedExecutor(*devices), 100.0
        self.restart()

    def restart(self):
        self.supervisor = Supervisor(self.store, self.executor, grace_s=60, monotonic=lambda: self.now)

    def queue(self, **values):
        return self.store.runs.enqueue(build(values)).id

    def launched(self, **values):
        """A run that was started and is alive."""
        run_id = self.queue(**values)
        self.executor.sightings[run_id] = ALIVE
        self.round()
        self.round()
        assert self.status(run_id) is RunStatus.RUNNING
        return run_id

    def round(self):
        return self.supervisor.round()

    def see(self, run_id, sighting):
        self.executor.sightings[run_id] = sighting
        return self.supervisor.round()

    def status(self, run_id):
        return self.store.runs.get(run_id).status

    def reason(self, run_id):
        return self.store.runs.get(run_id).reason

    def folder(self, run_id):
        path = self.store.workspace.run_dir(run_id)
        path.mkdir(parents=True, exist_ok=True)
        return path


def kinds(studio, run_id):
    return [event.kind for event in studio.store.runs.events(run_id)]


@pytest.fixture
def studio(store):
    return Studio(store)


# Claiming and starting


def test_a_queued_run_is_started_seen_and_ended(studio):
    run_id = studio.queue()
    assert studio.round()
    assert (studio.status(run_id), studio.executor.submitted) == (RunStatus.STARTING, [run_id])
    studio.see(run_id, Sighting(is_alive=True))
    assert studio.status(run_id) is RunStatus.STARTING  # the keeper is up, the trainer not yet
    studio.see(run_id, ALIVE)
    assert (studio.status(run_id), studio.store.runs.get(run_id).started_at_ms) == (RunStatus.RUNNING, 5)
    studio.see(run_id, FINISHED)
    assert (studio.status(run_id), studio.store.runs.get(run_id).ended_at_ms) == (RunStatus.FINISHED, 9)
    assert not studio.round()
    kinds = [event.kind for event in studio.store.runs.events(run_id)]
    assert set(kinds) == {"queued", "claimed", "started", "keeper", "finished"} and len(kinds) == 5


def test_one_run_a_slot_and_the_next_when_it_is_free(studio):
    first, second = studio.queue(), studio.queue()
    studio.executor.sightings[first] = ALIVE
    studio.round()
    studio.round()
    assert studio.executor.submitted == [first] and studio.status(second) is RunStatus.QUEUED
    studio.see(first, FINISHED)
    assert studio.executor.submitted == [first, second]


def test_auto_means_the_best_device_and_waits_for_it(store):
    studio = Studio(store, "cuda:0", "cuda:1", "cpu")
    runs = [studio.queue() for _ in range(3)] + [studio.queue(device="cpu")]
    studio.round()
    assert [store.runs.get(run_id).device for run_id in runs] == ["cuda:0", "cuda:1", None, "cpu"]


def test_a_device_that_is_not_here_fails_the_run_with_a_sentence(studio):
    run_id = studio.queue(device="cuda:3")
    other = studio.queue()
    studio.round()
    assert studio.status(run_id) is RunStatus.FAILED
    assert "cuda:3 is not available on this machine. Available: " in studio.reason(run_id)
    assert studio.status(other) is RunStatus.STARTING


def test_an_attempt_that_comes_to_nothing_is_repeated_three_times_and_then_failed_with_the_cause(studio):
    studio.executor.refusal = OSError(28, "No space left on device")
    run_id = studio.queue()
    for _ in range(8):
        studio.round()
    assert studio.executor.submitted == [run_id] * 3 and not studio.round()
    assert studio.status(run_id) is RunStatus.FAILED
    assert studio.reason(run_id) == "Could not be started in 3 attempts: [Errno 28] No space left on device."


def test_a_run_is_not_started_beside_an_earlier_attempt_that_is_still_running(studio):
    studio.executor.refusal = RunError("An earlier attempt is still running.")
    run_id = studio.queue()
    studio.round()
    studio.executor.refusal = None
    studio.round()
    assert studio.store.runs.get(run_id).attempts == 2
    assert any("An earlier attempt is still running" in event.message for event in studio.store.runs.events(run_id))


def test_an_attempt_refused_for_an_earlier_one_does_not_hold_its_slot_for_ever(studio):
    """What holds the keeper's lock is of an earlier attempt, so the executor sees something alive that never starts."""
    studio.executor.refusal = RunError("An earlier attempt is still running.")
    run_id = studio.queue()
    studio.executor.sightings[run_id] = Sighting(is_alive=True)
    for _ in range(3):
        studio.round()
    assert studio.executor.submitted == [run_id]  # it may be about to leave
    for _ in range(8):
        studio.now += 11
        studio.round()
    assert studio.executor.submitted == [run_id] * 3 and not studio.store.queue.live()
    assert studio.reason(run_id) == "Could not be started in 3 attempts: An earlier attempt is still running."
    second = studio.queue()
    studio.executor.sightings[second] = Sighting(is_alive=True)
    studio.round()
    studio.store.runs.request_stop(second)
    studio.round()
    assert (studio.status(second), studio.reason(second)) == (RunStatus.STOPPED, "Stopped before it started.")


def test_a_resumed_run_whose_spool_lost_its_end_loses_no_new_line(studio):
    """The machine lost power: runs.db kept what the spool did not, and new lines stand where lost ones stood."""
    run_id = studio.launched()
    spool_file = studio.folder(run_id) / run_files.SPOOL
    with SpoolWriter(spool_file) as spool:
        for step in range(1, 5):
            spool.metrics(step, {"train/loss": 1.0})
    studio.see(run_id, ended(number=9))
    lines = spool_file.read_bytes().splitlines(keepends=True)
    spool_file.write_bytes(b"".join(lines[:2]))
    studio.store.runs.resume(run_id, "From step 2.")
    studio.see(run_id, ABSENT)  # launched again
    with SpoolWriter(spool_file) as spool:
        spool.metrics(3, {"train/loss": 0.5})
    studio.see(run_id, ALIVE)
    assert studio.store.metrics.curve(run_id, "train/loss").mean == (1.0, 1.0, 0.5, 1.0)
    assert [e.message for e in studio.store.runs.events(run_id) if e.kind == "storage"] == [
        "The end of the spool file is missing, but it was already ingested: no measurement is lost."
    ]


@pytest.mark.parametrize("tail", [b"", bytes(200)])
def test_a_spool_cut_inside_a_line_is_read_on_from_where_the_trainer_writes(studio, tail):
    """The cut byte is past the last newline: whoever reads on from it loses what the next attempt writes before it."""
    run_id = studio.launched()
    spool_file = studio.folder(run_id) / run_files.SPOOL
    with SpoolWriter(spool_file) as writer:
        writer.metrics(1, {"train/loss": 1.0})
        writer.metrics(2, {"train/loss": 1.0} | {f"update/a.long.path.{i}": 0.5 for i in range(50)})
        writer.metrics(3, {"train/loss": 1.0})
    studio.see(run_id, ended(number=9))
    first, second, _ = spool_file.read_bytes().splitlines(keepends=True)
    spool_file.write_bytes(first + second[: len(second) * 9 // 10] + tail)
    studio.store.runs.resume(run_id, "From step 1.")
    studio.see(run_id, ABSENT)  # launched again
    with SpoolWriter(spool_file) as writer:
        for step in range(2, 30):
            writer.metrics(step, {"train/loss": 0.5})
    studio.see(run_id, ended(0, result={"outcome": "finished", "reason": None}))
    curve = studio.store.metrics.curve(run_id, "train/loss")
    assert curve.mean == (1.0, *[0.5] * 28) and curve.steps == tuple(range(1, 30))


UNREADABLE = [
    "config_json = json_set(config_json, '$.training.of_next_year', 1)",
    "config_json = json_set(config_json, '$.seed', 3000000000)",
    "name = 'set ' || char(0x202E) || 'gnp'",
    "config_json = json_set(config_json, '$.training.lr', json('1' || replace(hex(zeroblob(200)), '0', '1')))",
]


@pytest.mark.parametrize("damage", UNREADABLE)
def test_a_queued_run_that_cannot_be_read_fails_with_the_reason_and_the_next_one_starts(studio, damage):
    odd, next_one = studio.queue(), studio.queue()
    alter(studio.store, f"UPDATE runs SET {damage} WHERE id = ?", odd)
    for _ in range(3):
        studio.round()
    assert studio.status(odd) is RunStatus.FAILED and "cannot be read" in studio.reason(odd)
    assert set(studio.executor.submitted) == {next_one}


@pytest.mark.parametrize(
    "damage",
    [
        UNREADABLE[0],
        "facts_json = json_set(facts_json, '$.earlier', 5)",
        'progress_json = \'{"colour": "red"}\'',
        "weights_label = CAST(x'EDA080' AS TEXT)",
        "tags_json = '7'",
    ],
)
def test_a_live_run_that_cannot_be_read_is_stopped_and_ended_like_any_other(studio, damage):
    odd = studio.launched()
    alter(studio.store, f"UPDATE runs SET {damage} WHERE id = ?", odd)
    studio.queue()
    studio.store.runs.request_stop(odd)
    studio.round()
    assert studio.executor.stops == [(odd, False)]
    studio.see(odd, ended(3, steps=["SIGTERM"], result={"outcome": "stopped", "reason": "Stopped at step 1."}))
    assert studio.status(odd) is RunStatus.STOPPED and len(studio.executor.submitted) == 2


def alter(store, sql, *values):
    with store.connection.writing() as db:
        db.execute(sql, values)


def test_a_claim_of_a_supervisor_that_died_is_taken_up_after_ten_seconds(studio):
    run_id = studio.queue()
    Ledger(studio.store).claim("cpu", "nonce of the dead")
    studio.round()
    studio.now += 9
    studio.round()
    assert studio.status(run_id) is RunStatus.STARTING and not studio.executor.submitted
    studio.now += 2
    studio.round()
    assert studio.executor.submitted == [run_id] and studio.store.runs.get(run_id).attempts == 2


def test_a_restarted_supervisor_adopts_what_lives(studio):
    run_id = studio.launched()
    studio.restart()
    studio.now += 1000
    studio.round()
    assert studio.status(run_id) is RunStatus.RUNNING and studio.executor.submitted == [run_id]
    studio.see(run_id, FINISHED)
    assert studio.status(run_id) is RunStatus.FINISHED


def test_a_restarted_supervisor_gives_what_died_meanwhile_its_true_end(studio):
    run_id = studio.launched()
    studio.restart()
    studio.see(run_id, ended(number=9))
    assert studio.status(run_id) is RunStatus.FAILED and "signal 9 (SIGKILL)" in studio.reason(run_id)


def test_a_run_that_ended_before_anyone_saw_it_start_has_its_end_all_the_same(studio):
    run_id = studio.queue()
    studio.executor.sightings[run_id] = FINISHED
    studio.round()
    studio.restart()
    studio.round()
    run = studio.store.runs.get(run_id)
    assert (run.status, run.started_at_ms, run.ended_at_ms) == (RunStatus.FINISHED, 5, 9)


def test_an_adopted_run_says_so_once_for_each_supervisor_that_found_it(studio):
    run_id = studio.launched()
    assert "adopted" not in kinds(studio, run_id)  # its own supervisor has nothing to adopt
    for count in (1, 2):
        studio.restart()
        studio.round()
        studio.round()
        assert kinds(studio, run_id).count("adopted") == count


def test_all_that_lives_is_adopted_before_what_one_of_them_left_is_taken_in(store, monkeypatch):
    studio = Studio(store, "cuda:0", "cuda:1", "cuda:2")
    dead, *alive = [studio.launched() for _ in range(3)]
    for run_id in (dead, *alive):
        with SpoolWriter(studio.folder(run_id) / run_files.SPOOL) as spool:
            spool.metrics(1, {"train/loss": 1.0})
    studio.restart()
    seen, ingest = [], Ledger.ingest
    told = lambda: [run_id for run_id in alive if "adopted" in kinds(studio, run_id)]  # noqa: E731
    monkeypatch.setattr(Ledger, "ingest", lambda *args: seen.append(told()) or ingest(*args))
    studio.see(dead, ended(number=9))
    assert seen == [alive] * 3


def test_a_stop_does_not_wait_until_all_that_a_run_left_is_taken_in(studio, monkeypatch):
    run_id = studio.launched()
    with SpoolWriter(studio.folder(run_id) / run_files.SPOOL) as writer:
        for step in range(1, 101):
            writer.metrics(step, {"train/loss": 1.0})
    read = spool.read_batch
    monkeypatch.setattr(spool, "read_batch", lambda path, offset: read(path, offset, max_bytes=1000))
    last_step = lambda: studio.store.metrics.summaries([run_id])[run_id]["train/loss"].last_step  # noqa: E731
    studio.round()
    assert last_step() < 50
    studio.store.runs.request_stop(run_id)
    studio.round()
    assert studio.executor.stops == [(run_id, False)] and last_step() < 50
    studio.see(run_id, ended(3, result={"outcome": "stopped", "reason": "Stopped."}))
    assert last_step() == 100


# The queue


def test_a_paused_queue_starts_nothing_and_what_trains_goes_on(studio):
    first, second = studio.launched(), studio.queue()
    assert studio.store.queue.pause() and not studio.store.queue.pause()
    studio.see(first, FINISHED)
    assert studio.status(first) is RunStatus.FINISHED
    assert not studio.round() and studio.status(second) is RunStatus.QUEUED
    assert studio.store.queue.resume() and not studio.store.queue.resume()
    studio.round()
    assert studio.executor.submitted == [first, second]


def test_as_many_runs_share_the_cpu_as_it_has_slots(studio):
    runs = [studio.queue() for _ in range(4)]
    studio.store.queue.set_cpu_slots(3)
    studio.round()
    assert [studio.store.runs.get(run_id).device for run_id in runs] == ["cpu", "cpu:1", "cpu:2", None]
    assert studio.executor.shares == [3, 3, 3]
    for run_id in runs[:3]:
        studio.executor.sightings[run_id] = ALIVE
    studio.round()
    studio.store.queue.set_cpu_slots(1)  # what trains already goes on, nothing more starts until the last slot is free
    studio.see(runs[2], FINISHED)
    studio.see(runs[1], FINISHED)
    assert studio.status(runs[0]) is RunStatus.RUNNING and studio.status(runs[3]) is RunStatus.QUEUED
    studio.see(runs[0], FINISHED)
    assert (studio.store.runs.get(runs[3]).device, studio.executor.shares[-1]) == ("cpu", 1)


def test_cpu_slots_take_no_run_that_is_to_have_the_gpu(store):
    studio = Studio(store, "cuda:0", "cpu")
    store.queue.set_cpu_slots(2)
    wanted = ["auto", "auto", "cpu", "cpu"]
    runs = [studio.queue(device=device) for device in wanted]
    studio.round()
    assert [store.runs.get(run_id).device for run_id in runs] == ["cuda:0", None, "cpu", "cpu:1"]


# Stopping


def test_a_stop_is_passed_on_once_when_there_is_someone_to_tell(studio):
    run_id = studio.launched()
    studio.store.runs.request_stop(run_id)
    studio.executor.reachable = False
    studio.round()
    studio.executor.reachable = True
    for _ in range(3):
        studio.round()
    assert studio.executor.stops == [(run_id, False)] * 2
    studio.see(run_id, ended(3, steps=["SIGTERM"], result={"outcome": "stopped", "reason": "Stopped at step 12."}))
    assert (studio.status(run_id), studio.reason(run_id)) == (RunStatus.STOPPED, "Stopped at step 12.")


def test_stop_now_kills_at_once_after_a_stop_and_without_one(store):
    studio = Studio(store, "cuda:0", "cuda:1")
    saving, training = studio.launched(), studio.launched()
    store.runs.request_stop(saving)
    studio.round()
    for run_id in (saving, training):
        assert store.runs.request_stop(run_id, at_once=True).status is RunStatus.STOPPING
    for _ in range(3):
        studio.round()
    assert studio.executor.stops == [(saving, False), (saving, True), (training, True)]
    for run_id in (saving, training):
        studio.see(run_id, ended(number=9, steps=["SIGKILL now"]))
        assert studio.status(run_id) is RunStatus.STOPPED and "Stopped at once" in studio.reason(run_id)
        asked = [event.message for event in store.runs.events(run_id) if event.kind == "stop requested"]
        assert asked[-1].startswith("Stop now")


def test_each_step_of_a_stop_is_told_when_it_was_taken_and_once(studio):
    run_id = studio.launched()
    studio.store.runs.request_stop(run_id)
    steps = taken("started", "SIGTERM")
    studio.see(run_id, Sighting(is_alive=True, trainer_started=True, started_at_ms=5, steps=steps))
    told = [event for event in studio.store.runs.events(run_id) if event.kind == "keeper"]
    assert [(event.at_ms, event.message.split(":")[0]) for event in told] == [
        (6, "Started the trainer."),
        (7, "Asked the trainer (SIGTERM) to save a checkpoint and exit."),
    ]
    studio.restart()  # another supervisor reads the same steps
    studio.see(run_id, ended(number=9, steps=["SIGTERM", "SIGKILL"]))
    told = [event for event in studio.store.runs.events(run_id) if event.kind == "keeper"]
    assert [event.at_ms for event in told] == [6, 7, 8] and "(SIGKILL)" in told[-1].message


def test_stop_now_ends_a_trainer_without_its_keeper_too(studio):
    run_id = studio.launched()
    studio.store.runs.request_stop(run_id, at_once=True)
    studio.see(run_id, ORPHAN)
    studio.see(run_id, ORPHAN)
    assert studio.executor.stops == [(run_id, True)]
    assert kinds(studio, run_id).count("keeper lost") == 1
    studio.see(run_id, Sighting(is_alive=False, trainer_started=True))
    assert studio.status(run_id) is RunStatus.STOPPED and "Stopped at once" in studio.reason(run_id)


def test_a_stop_during_a_failed_launch_is_the_end_and_no_second_try(studio):
    run_id = studio.queue()
    studio.round()
    studio.store.runs.request_stop(run_id)
    studio.round()
    assert (studio.status(run_id), studio.executor.submitted) == (RunStatus.STOPPED, [run_id])


def test_a_trainer_without_its_keeper_is_stopped_and_in_the_end_killed(studio):
    run_id = studio.launched()
    for _ in range(3):
        studio.see(run_id, ORPHAN)
    assert studio.executor.stops == [(run_id, False)]
    studio.now += 61
    studio.round()
    assert studio.executor.stops[-1] == (run_id, True)
    studio.see(run_id, Sighting(is_alive=False, trainer_started=True))
    assert studio.status(run_id) is RunStatus.FAILED and "keeper was killed" in studio.reason(run_id)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_keeper_that_answers_nothing_is_killed_after_its_time_and_its_slot_is_free(studio, at_once):
    run_id = studio.launched()
    studio.store.runs.request_stop(run_id, at_once=at_once)
    studio.round()
    studio.now += 5
    studio.round()
    assert studio.executor.stops == [(run_id, at_once)]  # it still has time
    studio.now += 80
    studio.round()
    studio.round()
    assert studio.executor.stops[1:] == [(run_id, "kill")] * 2
    assert [e.message for e in studio.store.runs.events(run_id) if "Killed the keeper" in e.message] != []
    studio.see(run_id, Sighting(is_alive=False, trainer_started=True, started_at_ms=5))
    assert studio.status(run_id) is RunStatus.STOPPED and "checkpoint is lost" in studio.reason(run_id)


# Taking what was measured


def test_everything_a_dead_run_left_is_taken_before_its_end_is_written(studio):
    run_id = studio.launched()
    folder = studio.folder(run_id)
    with SpoolWriter(folder / run_files.SPOOL) as spool:
        for step in range(1, 2001):
            spool.metrics(step, {"train/loss": 1 / step})
        spool.facts({"weights_label": "random weights"})
    with (folder / run_files.SPOOL).open("ab") as file:
        file.write(b'{"k":"metrics","st')
    clip = Prediction(clip_id="a", split="test", label="x", predicted="y", probability=0.5, label_probability=0.25)
    write_predictions(folder / run_files.PREDICTIONS, [clip])
    studio.see(run_id, FINISHED)
    assert studio.store.metrics.summaries([run_id])[run_id]["train/loss"].last_step == 2000
    assert studio.store.runs.get(run_id).weights_label == "random weights"
    assert studio.store.runs.predictions(run_id, "test") == (clip,)
    (torn,) = [event for event in studio.store.runs.events(run_id) if event.kind == "unreadable"]
    assert torn.message.startswith("Ignored the last 18 bytes of spool.jsonl")


def test_predictions_that_cannot_be_read_do_not_keep_a_run_from_ending(studio):
    run_id = studio.launched()
    (studio.folder(run_id) / run_files.PREDICTIONS).write_text("no json\n")
    studio.see(run_id, FINISHED)
    assert studio.status(run_id) is RunStatus.FINISHED
    assert any("Line 1 of" in event.message for event in studio.store.runs.events(run_id))


def test_a_lost_run_says_what_was_last_seen(studio):
    run_id = studio.launched()
    with SpoolWriter(studio.folder(run_id) / run_files.SPOOL) as spool:
        spool.metrics(7, {"train/loss": 1.25})
    studio.restart()
    studio.see(run_id, ABSENT)
    assert studio.status(run_id) is RunStatus.LOST
    told = re.fullmatch(r".* Last seen at (\S+ \S+) at step 7, train/loss 1\.25\.", studio.reason(run_id))
    at = (studio.folder(run_id) / run_files.SPOOL).stat().st_mtime
    assert told and told[1] == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


@pytest.mark.parametrize("result", [None, {"outcome": "finished", "reason": None}])
def test_time_that_nobody_saw_is_no_time_a_run_trained(studio, result):
    """The machine was off for two days, say, or keeper and supervisor were gone when the trainer finished."""
    run_id = studio.launched()
    folder = studio.folder(run_id)
    with SpoolWriter(folder / run_files.SPOOL) as spool:
        spool.metrics(7, {"train/loss": 1.25})
    os.utime(folder / run_files.SPOOL, ns=(0, 60_000_000_000))
    if result:
        run_files.write_json(folder / run_files.RESULT, result)
        os.utime(folder / run_files.RESULT, ns=(0, 90_000_000_000))
    studio.restart()
    studio.see(run_id, Sighting(is_alive=False, trainer_started=True, started_at_ms=5, result=result))
    run = studio.store.runs.get(run_id)
    assert (run.status, run.ended_at_ms) == ((RunStatus.FINISHED, 90_000) if result else (RunStatus.LOST, 60_000))


def test_an_end_lies_neither_before_its_start_nor_in_the_future(studio):
    early = studio.launched()
    (studio.folder(early) / run_files.SPOOL).touch()
    os.utime(studio.folder(early) / run_files.SPOOL, ns=(0, 0))  # of the launch before, or the clock was moved
    studio.see(early, ABSENT)
    assert studio.store.runs.get(early).ended_at_ms == 5
    late = studio.launched()
    (studio.folder(late) / run_files.SPOOL).touch()
    os.utime(studio.folder(late) / run_files.SPOOL, ns=(0, 2**62))
    studio.see(late, ABSENT)
    assert studio.store.runs.get(late).ended_at_ms <= now_ms()


def test_a_run_lost_before_its_first_step_says_how_far_it_had_come(studio):
    run_id = studio.launched()
    with SpoolWriter(studio.folder(run_id) / run_files.SPOOL) as spool:
        spool.progress(Progress(phase="preparing", done=3, total=40))
    studio.see(run_id, ABSENT)
    assert studio.reason(run_id).endswith(" preparing, 3 of 40.")
    silent = studio.launched()
    studio.see(silent, ABSENT)
    assert studio.reason(silent).endswith(" It had not measured anything yet.")


def test_one_runs_trouble_does_not_hold_up_the_others(store, capfd):
    studio = Studio(store, "cuda:0", "cuda:1")
    sick, well = studio.launched(), studio.launched()
    poll = studio.executor.poll

    def poll_or_fail(run, nonce):
        if run.id == sick:
            raise ZeroDivisionError("unforeseen")
        return poll(run, nonce)

    studio.executor.poll = poll_or_fail
    studio.see(well, FINISHED)
    assert studio.status(well) is RunStatus.FINISHED and studio.status(sick) is RunStatus.RUNNING
    assert "unforeseen" in capfd.readouterr().err
    studio.executor.poll = poll
    studio.now += 10
    studio.see(sick, FINISHED)
    assert studio.status(sick) is RunStatus.FINISHED


def test_a_dead_run_whose_leavings_cannot_be_taken_ends_all_the_same(studio, monkeypatch, capfd):
    run_id = studio.launched()

    def fails(*args):
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(Ledger, "save_predictions", fails)
    for _ in range(5):
        studio.see(run_id, FINISHED)
        studio.now += 10
    assert studio.status(run_id) is RunStatus.FAILED and "ZeroDivisionError" in studio.reason(run_id)
    assert Ledger(studio.store).claim("cpu", "next") is None and not studio.store.queue.live()  # the slot is free


def test_a_run_whose_notes_cannot_be_read_ends_no_supervisor_and_goes_on_when_they_can(
    workspace, store, capfd, monkeypatch
):
    studio = Studio(store)
    run_id = studio.launched()
    executor, real = studio.executor, local.LocalExecutor(workspace)
    monkeypatch.setattr(run_files, "read_keeper", Mock(side_effect=OSError(errno.EIO, "the disk answers with errors")))
    scripted, executor.poll = executor.poll, real.poll
    for _ in range(8):
        studio.round()
        studio.now += 10
    assert studio.status(run_id) is RunStatus.RUNNING and "the disk answers" in capfd.readouterr().err
    assert kinds(studio, run_id).count("supervisor") == 1
    executor.poll = scripted
    studio.see(run_id, FINISHED)
    assert studio.status(run_id) is RunStatus.FINISHED


def test_a_full_disk_is_waited_out_and_nothing_is_missing(studio, capfd):
    run_id = studio.launched()
    with SpoolWriter(studio.folder(run_id) / run_files.SPOOL) as spool:
        for step in range(1, 6001):
            spool.metrics(step, {"train/loss": 1.0})
    db = studio.store.connection.db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")  # full
    leaving, rounds = threading.Event(), []
    play = studio.supervisor.round

    def play_and_count():
        rounds.append(1)
        if len(rounds) == 3:
            db.execute("PRAGMA max_page_count = 1000000")  # space again
        if len(rounds) == 5:
            leaving.set()
        return play()

    studio.supervisor.round = play_and_count
    studio.supervisor.serve(idle_exit_s=60, leaving=leaving)
    assert len(rounds) == 5
    assert studio.store.metrics.summaries([run_id])[run_id]["train/loss"].last_step == 6000
    assert [event.kind for event in studio.store.runs.events(run_id)].count("storage") == 1
    told = capfd.readouterr().err
    assert told.count("is full: free some space") == 1 and "nothing was lost" in told


# How an attempt ended, from what it left


@pytest.mark.parametrize(
    ("sighting", "status", "words"),
    [
        (ended(0, result={"outcome": "finished", "reason": "No better valid accuracy."}), "finished", "No better"),
        (ended(0), "failed", "result.json is missing"),
        (ended(2, result={"outcome": "failed", "reason": "r=0 will not do."}), "failed", "r=0 will not do."),
        (ended(1), "failed", "exit code 1. Last line of its log: KeyError: 3"),
        (ended(1, result={"outcome": "failed", "reason": "The disk is full."}), "failed", "The disk is full."),
        (ended(127), "failed", "exit code 127"),
        (ended(3), "stopped", "Stopped."),
        (ended(4), "failed", "The disk is full. Free some space"),
        (ended(number=9), "failed", "signal 9 (SIGKILL). The usual cause"),
        (ended(number=9, oom_kills=0), "failed", "but not for lack of memory: its cgroup"),
        (ended(number=9, oom_kills=1), "failed", "Out of memory: the system killed the trainer (SIGKILL; its cgroup"),
        (ended(number=9, oom_kills=1, whose="machine"), "failed", "Most likely out of memory: the trainer was killed"),
        (ended(number=9, oom_kills=0, whose="machine"), "failed", "but not for lack of memory: the machine"),
        (ended(number=11, oom_kills=1), "failed", "signal 11 (SIGSEGV)"),
        (ended(number=40), "failed", "The trainer died: signal 40 (a real-time signal)."),
        (ended(1, oom_kills=2, result={"outcome": "failed", "reason": "A worker went."}), "failed", "another process"),
        (ended(number=11), "failed", "signal 11 (SIGSEGV)"),
        (ended(number=15), "failed", "signal 15 (SIGTERM)"),
        (ended(number=6, result={"outcome": "failed", "reason": "The GPU ran out."}), "failed", "The GPU ran out."),
        (ended(number=9, steps=["SIGTERM", "SIGKILL"]), "stopped", "did not stop in time"),
        (ended(number=9, steps=["SIGTERM", "SIGKILL now"], oom_kills=0), "stopped", "Stopped at once, as requested"),
        (ended(number=9, result={"outcome": "finished", "reason": None}), "finished", None),
        (Sighting(is_alive=False, result={"outcome": "finished", "reason": None}), "finished", None),
        (Sighting(is_alive=False, result={"outcome": "stopped", "reason": "Stopped at 4."}), "stopped", "keeper was"),
        (Sighting(is_alive=False, result={"outcome": "failed", "reason": "No."}), "failed", "No."),
        (Sighting(is_alive=False), "lost", "recorded how it ended: both were killed, or the machine lost power"),
        (Sighting(is_alive=False, was_rebooted=False), "lost", "neither recorded how it ended: both were killed."),
        (Sighting(is_alive=False, was_rebooted=True), "lost", "The machine was restarted during training."),
    ],
)
def test_the_end_of_a_run_is_told_from_what_it_left(store, sighting, status, words):
    run = store.runs.enqueue(RunConfig())
    found, reason = read(run, sighting, last_log_line="KeyError: 3")
    assert found == status
    assert words in reason if words else reason is None


def test_a_stop_that_came_before_the_trainer_could_listen_is_a_stop(store):
    run = store.runs.enqueue(RunConfig())
    Ledger(store).claim("cpu", "n")
    stopping = store.runs.request_stop(run.id)
    assert read(stopping, ended(number=15))[0] is RunStatus.STOPPED
    assert read(stopping, ended())[0] is RunStatus.STOPPED


# Leaving, and being the only one


def test_a_run_queued_at_the_moment_of_leaving_is_not_forgotten(workspace, monkeypatch):
    """The race itself: enqueue and ensure come between the last look at the queue and the lock's release."""
    served, late = [], []

    def serve(self, idle_exit_s, leaving):
        served.append(1)
        if len(served) == 1:  # decided to leave; the lock is still held
            late.append(self._store.runs.enqueue(RunConfig()))
            assert ensure.ensure(workspace) is False  # who queued it found us still here
        else:
            self._store.runs.request_stop(late[0].id)

    monkeypatch.setattr(Supervisor, "serve", serve)
    supervisor.main([str(workspace.root)])
    assert len(served) == 2


def test_who_leaves_with_runs_waiting_gives_way_to_one_that_took_over(workspace, monkeypatch):
    lock, served = [], []
    real = locks.take

    def lock_or_lose(path):
        if served:
            return None
        lock.append(real(path))
        return lock[-1]

    def serve(self, idle_exit_s, leaving):
        served.append(1)
        self._store.runs.enqueue(RunConfig())

    monkeypatch.setattr(supervisor.locks, "take", lock_or_lose)
    monkeypatch.setattr(Supervisor, "serve", serve)
    supervisor.main([str(workspace.root)])
    assert len(served) == 1


def test_a_second_supervisor_is_refused_in_a_sentence(workspace):
    workspace.runs.mkdir(parents=True)
    lock = locks.take(workspace.supervisor_lock)
    assert lock is not None and locks.take(workspace.supervisor_lock) is None
    with pytest.raises(SystemExit, match="is already running"):
        supervisor.main([str(workspace.root)])


def test_a_supervisor_of_a_database_it_cannot_use_leaves_with_a_sentence(workspace):
    workspace.db.write_bytes(b"garbage " * 1000)
    with pytest.raises(SystemExit, match="not a readable SQLite database"):
        supervisor.main([str(workspace.root), "--idle-exit-s", "0"])


def test_ensure_where_nothing_can_be_written_is_an_error_with_a_sentence(tmp_path):
    from sousa_engine.workspace import Workspace

    (tmp_path / "runs").write_text("a file in the way")
    with pytest.raises(WorkspaceError, match="No supervisor can start in"):
        ensure.ensure(Workspace(root=tmp_path))


# This machine


@pytest.fixture
def devices_forgotten():
    """The devices that a test pretends to have are forgotten behind it; to be named before monkeypatch."""
    yield
    local.devices(fresh=True)


def test_slots_are_the_devices_that_pytorch_can_use(devices_forgotten, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(local, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    version = tmp_path / "version.py"
    version.write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert not [slot for slot in local.devices(fresh=True) if slot.startswith("cuda")]
    assert "this PyTorch is a CPU build" in local.absence("cuda:0")
    version.write_text("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    assert local.devices(fresh=True)[:2] == ("cuda:0", "cuda:1") and local.devices()[-1] == "cpu"


def test_the_config_of_an_attempt_names_the_device_it_was_given(workspace, store, monkeypatch):
    monkeypatch.setattr(local.subprocess, "Popen", lambda *args, **options: None)
    store.runs.enqueue(build({"seed": 4}))
    run = Ledger(store).claim("cpu", "n1")
    executor = local.LocalExecutor(workspace)
    executor.submit(run, "n1")
    written = json.loads((workspace.run_dir(run.id) / run_files.CONFIG).read_text())
    assert RunConfig.model_validate(written) == run.config.model_copy(update={"device": "cpu"})
    assert executor.poll(run, "n1") == ABSENT  # nobody took the lock over


def test_what_an_earlier_attempt_left_says_nothing_of_the_next_one(studio):
    """A supervisor claims a resumed run and dies before it removes the notes of the attempt before."""
    folder = studio.folder(run_id := studio.queue())
    for nonce, wanted in (("n1", True), ("n2", False)):
        run_files.write_json(folder / run_files.RESULT, {"outcome": "stopped", "reason": "Stopped at step 3."})
        note = {"nonce": "n1", "pid": 1, "trainer_pid": 2, "started_ms": 5}
        run_files.write_json(folder / run_files.KEEPER, note)
        run_files.write_json(
            folder / run_files.EXIT, {**note, "exit_code": 3, "signal": None, "ended_ms": 9, "steps": []}
        )
        seen = local.LocalExecutor(studio.store.workspace).poll(studio.store.runs.get(run_id), nonce)
        assert (seen.result is not None, seen.exit is not None, seen.trainer_started) == (wanted,) * 3


def test_a_run_in_a_slot_of_the_cpu_trains_on_the_cpu_with_its_share_of_threads(workspace, store, monkeypatch):
    started = []
    monkeypatch.setattr(local.subprocess, "Popen", lambda *args, **options: started.append(options["env"]))
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    store.runs.enqueue(RunConfig())
    run = Ledger(store).claim("cpu:1", "n1", ["cpu", "auto"])
    local.LocalExecutor(workspace).submit(run, "n1", cpu_slots=3)
    written = json.loads((workspace.run_dir(run.id) / run_files.CONFIG).read_text())
    assert (written["device"], started[0]["OMP_NUM_THREADS"]) == ("cpu", "2")
    local.LocalExecutor(workspace).submit(run, "n2", cpu_slots=1)
    assert "OMP_NUM_THREADS" not in started[1]  # alone, it takes what PyTorch takes
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    local.LocalExecutor(workspace).submit(run, "n3", cpu_slots=3)
    assert started[2]["OMP_NUM_THREADS"] == "1"  # what the user set is not exceeded


@pytest.mark.parametrize(
    ("visible", "seen"), [(None, ["0", "1"]), ("2,3", ["2", "3"]), ("GPU-a1, GPU-b2", ["GPU-a1", "GPU-b2"])]
)
def test_a_run_in_the_slot_of_a_gpu_sees_that_gpu_alone(workspace, store, monkeypatch, visible, seen):
    started = []
    monkeypatch.setattr(local.subprocess, "Popen", lambda *args, **options: started.append(options["env"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for slot in ("cuda:0", "cuda:1", "cpu"):
        store.runs.enqueue(RunConfig())
        local.LocalExecutor(workspace).submit(Ledger(store).claim(slot, slot, ["auto"]), slot)
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in started] == [*seen, visible]


def test_a_pid_that_was_given_to_another_program_is_neither_adopted_nor_signalled(workspace, store):
    """keeper.json names a pid, and the machine gave it to somebody else since."""
    store.runs.enqueue(RunConfig())
    run = Ledger(store).claim("cpu", "n1")
    folder = workspace.run_dir(run.id)
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        note = {"nonce": "n1", "pid": stranger.pid, "trainer_pid": stranger.pid, "started_ms": 5}
        run_files.write_json(folder / run_files.KEEPER, note)
        executor = local.LocalExecutor(workspace)
        assert not executor.poll(run, "n1").is_alive  # the lock says so, whoever has the pid
        assert not executor.stop(run, "n1") and not executor.stop(run, "n1", now=True)
        with (folder / run_files.KEEPER_LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert executor.poll(run, "n1").is_orphan  # a process of this attempt lives, and this is not its keeper
        assert stranger.poll() is None
        stranger.kill()


def test_a_start_of_the_machine_is_seen_by_its_boot_id(workspace, store):
    store.runs.enqueue(RunConfig())
    run = Ledger(store).claim("cpu", "n1")
    folder = workspace.run_dir(run.id)
    folder.mkdir(parents=True)
    here = run_files.boot_id()
    for then, seen in (("another", True if here else None), (here, False if here else None), (None, None)):
        note = {"nonce": "n1", "pid": 1, "trainer_pid": None, "started_ms": 5, "boot_id": then}
        run_files.write_json(folder / run_files.KEEPER, note)
        assert local.LocalExecutor(workspace).poll(run, "n1").was_rebooted is seen
