"""Real supervisors, keepers and trainers (a double without torch), killed in all the ways that happen to people.

The trainer's double counts each acknowledged spool write in a file of its own; runs.db must agree with that count.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import time

import psutil
import pytest
from waiting import wait_for

from sousa_engine.core.config import build
from sousa_engine.core.records import RunStatus
from sousa_engine.runs import ensure
from sousa_engine.store import Store
from sousa_engine.workspace import PROJECT_ROOT, run_files

pytestmark = pytest.mark.process
DOUBLE = ("--trainer-module", "tests.fake_trainer")
SAVE = "Asked the trainer (SIGTERM) to save a checkpoint and exit."


class Studio:
    def __init__(self, workspace):
        self.workspace = workspace
        self.store = Store.open(workspace)

    def queue(self, words, **values):
        return self.store.runs.enqueue(build({"name": words, **values})).id

    def supervise(self, *options, idle_exit_s=30.0, grace_s=60.0):
        options = (*DOUBLE, "--idle-exit-s", str(idle_exit_s), "--grace-s", str(grace_s), *options)
        return ensure.ensure(self.workspace, options)

    def run(self, run_id):
        return self.store.runs.get(run_id)

    def steps(self, run_id):
        """Steps of train/loss in runs.db, in order."""
        with sqlite3.connect(self.workspace.db) as plain:
            rows = plain.execute(
                "SELECT step FROM metric_points JOIN metric_names USING (metric_number) JOIN runs USING (run_number)"
                " WHERE id = ? AND metric = 'train/loss' ORDER BY step",
                [run_id],
            ).fetchall()
        plain.close()
        return [step for (step,) in rows]

    def counted(self, run_id):
        """Points as the prepared levels count them: one taken twice would show here."""
        with sqlite3.connect(self.workspace.db) as plain:
            (count,) = plain.execute(
                "SELECT sum(point_count) FROM metric_levels JOIN metric_names USING (metric_number)"
                " JOIN runs USING (run_number) WHERE id = ? AND metric = 'train/loss' AND width = 8",
                [run_id],
            ).fetchone()
        plain.close()
        return count

    def acknowledged(self, run_id):
        return struct.unpack("q", (self.workspace.run_dir(run_id) / "acknowledged").read_bytes())[0]

    def running_at(self, run_id, step):
        """Wait until runs.db shows the run at `step` or beyond."""
        wait_for(lambda: self.run(run_id).progress and self.run(run_id).progress.done >= step)
        assert self.run(run_id).status is RunStatus.RUNNING

    def let_go(self, run_id):
        """A run queued with hold=N goes on."""
        (self.workspace.run_dir(run_id) / "go").touch()

    def over(self, run_id):
        wait_for(lambda: self.run(run_id).status.is_over)
        return self.run(run_id)

    def pids(self, run_id):
        """(keeper, trainer)"""
        note = run_files.read_json(self.workspace.run_dir(run_id) / run_files.KEEPER)
        return note["pid"], note["trainer_pid"]

    def processes(self, word=""):
        """Everything that runs for this workspace, by its folder in the command line."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.workspace.root) in line and word in line and process.pid != os.getpid():
                found.append(process.pid)
        return found

    def is_alive(self, pid):
        return pid in self.processes("tests.fake_trainer")  # a zombie has no command line

    def supervisor_pid(self):
        (pid,) = wait_for(lambda: self.processes("sousa_engine.runs.supervisor"))
        return pid

    def kill_supervisor(self):
        pid = self.supervisor_pid()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pid not in self.processes("sousa_engine.runs.supervisor"))

    def ladder(self, run_id):
        """What its keeper did, by the beginning of each sentence."""
        return [e.message.split(":")[0] for e in self.store.runs.events(run_id) if e.kind == "keeper"]

    def kinds(self, run_id):
        return [event.kind for event in self.store.runs.events(run_id)]


@pytest.fixture
def studio(workspace):
    found = Studio(workspace)
    yield found
    # The supervisor first: it would start what we end.
    for word in ("sousa_engine.runs.supervisor", ""):
        for pid in found.processes(word):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    wait_for(lambda: not found.processes())
    found.store.close()


def assert_nothing_lost_or_doubled(studio, run_id):
    steps = studio.steps(run_id)
    assert steps == list(range(1, len(steps) + 1))
    # One more if the kill came between the spool's write and the count.
    assert len(steps) - studio.acknowledged(run_id) in (0, 1)
    assert studio.counted(run_id) == len(steps)


def test_a_run_goes_from_queue_to_end_and_the_supervisor_leaves_when_idle(studio):
    runs = [studio.queue("steps=30", seed=seed) for seed in range(2)]
    assert studio.supervise(idle_exit_s=0.5)
    for run_id in runs:
        run = studio.over(run_id)
        assert (run.status, run.reason, run.device, run.attempts) == (RunStatus.FINISHED, None, "cpu", 1)
        assert run.facts["device"] == "cpu" and run.progress.done == 30
        assert studio.store.metrics.summaries([run_id])[run_id]["test/accuracy"].n == 2
        assert [p.clip_id for p in studio.store.runs.predictions(run_id, "test")] == ["a", "b"]
        assert_nothing_lost_or_doubled(studio, run_id)
    first, second = (studio.run(run_id) for run_id in runs)
    assert first.ended_at_ms <= second.started_at_ms  # one slot, one run
    wait_for(lambda: not studio.processes())


def test_a_stopped_run_keeps_metrics_up_to_its_last_step(studio):
    run_id = studio.queue("steps=100000")
    studio.supervise()
    studio.running_at(run_id, 20)
    assert studio.store.runs.request_stop(run_id).status is RunStatus.STOPPING
    run = studio.over(run_id)
    assert (run.status, run.reason) == (RunStatus.STOPPED, f"Stopped at {studio.acknowledged(run_id)}.")
    assert_nothing_lost_or_doubled(studio, run_id)
    assert {"stop requested", "checkpoint", "stopped"} <= set(studio.kinds(run_id))
    assert studio.ladder(run_id) == ["Started the trainer.", SAVE]


def test_a_trainer_that_ignores_the_stop_is_killed_and_the_run_says_so(studio):
    run_id = studio.queue("steps=100000 at=3 do=deaf")
    studio.supervise(grace_s=0.5)
    studio.running_at(run_id, 10)
    studio.store.runs.request_stop(run_id)
    run = studio.over(run_id)
    assert run.status is RunStatus.STOPPED and "did not stop in time" in run.reason
    assert studio.ladder(run_id) == [
        "Started the trainer.",
        SAVE,
        "Killed the trainer and its child processes (SIGKILL)",
    ]
    assert_nothing_lost_or_doubled(studio, run_id)


def test_stop_now_ends_a_trainer_that_does_not_listen_and_its_stop_so_far_is_told(studio):
    run_id = studio.queue("steps=100000 at=3 do=deaf")
    studio.supervise()
    studio.running_at(run_id, 10)
    studio.store.runs.request_stop(run_id)
    wait_for(lambda: len(studio.ladder(run_id)) == 2)  # told while it still lives
    assert studio.run(run_id).status is RunStatus.STOPPING
    studio.store.runs.request_stop(run_id, at_once=True)
    run = studio.over(run_id)
    assert run.status is RunStatus.STOPPED and run.reason.startswith("Stopped at once, as requested")
    asked = [
        event for event in studio.store.runs.events(run_id) if event.kind in ("stop requested", "keeper", "stopped")
    ]
    assert [event.message.split(":")[0] for event in asked] == [
        "Started the trainer.",
        "Stop and save requested.",
        SAVE,
        "Stop now requested",
        "Killed the trainer and its child processes (SIGKILL) without waiting.",
        "Stopped at once, as requested; progress since the last checkpoint is lost.",
    ]
    assert_nothing_lost_or_doubled(studio, run_id)


def test_runs_share_the_cpu_in_slots_of_their_own(studio):
    studio.store.queue.set_cpu_slots(2)
    runs = [studio.queue("steps=20 hold=10") for _ in range(3)]
    studio.supervise()
    for run_id in runs[:2]:
        studio.running_at(run_id, 10)
    assert {studio.run(run_id).device for run_id in runs[:2]} == {"cpu", "cpu:1"}
    assert studio.run(runs[2]).status is RunStatus.QUEUED
    assert [studio.run(run_id).facts["device"] for run_id in runs[:2]] == ["cpu", "cpu"]
    for run_id in runs:
        wait_for(lambda run_id=run_id: studio.run(run_id).status is not RunStatus.QUEUED)
        wait_for(lambda run_id=run_id: studio.workspace.run_dir(run_id).is_dir())
        studio.let_go(run_id)
        assert studio.over(run_id).status is RunStatus.FINISHED
        assert_nothing_lost_or_doubled(studio, run_id)


ENDS = {
    "torn": (RunStatus.FAILED, "The trainer died: signal 9 (SIGKILL)"),
    "crash": (RunStatus.FAILED, "Last line of its log: RuntimeError: the double was told to crash"),
    "user": (RunStatus.FAILED, "r=0 will not do."),
    "quit": (RunStatus.FAILED, "result.json is missing"),
    "nan": (RunStatus.FINISHED, None),
    "child": (RunStatus.FINISHED, None),
}


def test_each_end_of_a_trainer_is_told_and_its_metrics_kept(studio):
    """One supervisor sees them all: none of these ends keeps it from the next."""
    runs = {do: studio.queue(f"steps=30 at=12 do={do} pause_s=0") for do in ENDS}
    assert studio.supervise()
    for do, run_id in runs.items():
        run = studio.over(run_id)
        status, reason = ENDS[do]
        assert run.status is status, do
        assert reason in run.reason if reason else run.reason is None
        assert_nothing_lost_or_doubled(studio, run_id)
        assert studio.store.metrics.first_divergence(run_id) == (("train/loss", 12) if do == "nan" else None)
        assert ("unreadable" in studio.kinds(run_id)) == (do == "torn")
    pid = int((studio.workspace.run_dir(runs["child"]) / "child_pid").read_text())
    wait_for(lambda: not psutil.pid_exists(pid))
    assert not studio.supervise(), "it is still the first one"


def test_a_killed_supervisor_is_replaced_and_the_training_never_notices(studio):
    rng = random.Random(1)
    run_id = studio.queue("steps=400 hold=300")
    at = 0
    for kills in range(2):
        wait_for(studio.supervise)  # the kernel takes its time to close what a killed process held
        at += rng.randint(5, 90)
        studio.running_at(run_id, at)
        assert studio.kinds(run_id).count("adopted") == kills
        studio.kill_supervisor()
    studio.let_go(run_id)
    trainer = studio.pids(run_id)[1]
    wait_for(studio.supervise)
    run = studio.over(run_id)
    assert (run.status, run.attempts, run.facts["pid"]) == (RunStatus.FINISHED, 1, trainer)
    assert_nothing_lost_or_doubled(studio, run_id)


_SERVER = """
import sys
from starlette.testclient import TestClient
import app
with TestClient(app.app, base_url="http://localhost"):
    print("up", flush=True)
    sys.stdin.read()
"""


def test_an_open_studio_replaces_a_killed_supervisor_and_its_own_death_is_not_noticed(studio):
    run_id = studio.queue("steps=400 hold=300")
    studio.supervise()
    studio.running_at(run_id, 5)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    env = {**os.environ, "SOUSA_WORKSPACE": str(studio.workspace.root)}
    with subprocess.Popen([sys.executable, "-c", _SERVER], cwd=PROJECT_ROOT, env=env, **pipes) as server:
        assert server.stdout.readline() == b"up\n"
        killed_ms = time.time_ns() // 1_000_000
        studio.kill_supervisor()
        wait_for(lambda: "adopted" in studio.kinds(run_id), timeout_s=60)
        (adopted,) = [event for event in studio.store.runs.events(run_id) if event.kind == "adopted"]
        print(f"adopted {adopted.at_ms - killed_ms} ms after the supervisor was killed")
        server.kill()
    studio.let_go(run_id)
    run = studio.over(run_id)
    assert (run.status, run.attempts) == (RunStatus.FINISHED, 1)
    assert_nothing_lost_or_doubled(studio, run_id)


def test_a_run_that_ends_while_nobody_supervises_gets_its_true_end(studio):
    run_id = studio.queue("steps=60 hold=10 at=50 do=kill")
    studio.supervise()
    studio.running_at(run_id, 5)
    studio.kill_supervisor()
    studio.let_go(run_id)
    wait_for(lambda: (studio.workspace.run_dir(run_id) / run_files.EXIT).exists())
    assert studio.run(run_id).status is RunStatus.RUNNING
    wait_for(studio.supervise)
    run = studio.over(run_id)
    assert run.status is RunStatus.FAILED and "signal 9 (SIGKILL)" in run.reason
    assert_nothing_lost_or_doubled(studio, run_id)


def test_a_stop_asked_for_while_nobody_supervises_is_carried_out(studio):
    run_id = studio.queue("steps=100000")
    studio.supervise()
    studio.running_at(run_id, 5)
    studio.kill_supervisor()
    studio.store.runs.request_stop(run_id)
    wait_for(studio.supervise)
    assert studio.over(run_id).status is RunStatus.STOPPED
    assert_nothing_lost_or_doubled(studio, run_id)


def test_a_killed_keeper_leaves_no_trainer_behind_and_its_work_is_saved(studio):
    run_id = studio.queue("steps=100000")
    studio.supervise()
    studio.running_at(run_id, 10)
    keeper, trainer = studio.pids(run_id)
    os.kill(keeper, signal.SIGKILL)
    run = studio.over(run_id)
    assert run.status is RunStatus.STOPPED and run.reason.startswith("Its keeper was killed, so the trainer saved")
    assert not studio.is_alive(trainer)
    assert_nothing_lost_or_doubled(studio, run_id)


def test_a_deaf_trainer_without_its_keeper_is_ended_too(studio):
    run_id = studio.queue("steps=100000 at=3 do=deaf")
    studio.supervise(grace_s=0.5)
    studio.running_at(run_id, 10)
    keeper, trainer = studio.pids(run_id)
    os.kill(keeper, signal.SIGKILL)
    run = studio.over(run_id)
    assert run.status is RunStatus.FAILED and "keeper was killed" in run.reason
    assert not studio.is_alive(trainer)
    assert "keeper lost" in studio.kinds(run_id)


def test_everything_killed_at_once_is_a_lost_run_that_says_what_was_last_seen(studio):
    run_id = studio.queue("steps=100000")
    studio.supervise()
    studio.running_at(run_id, 10)
    for pid in (studio.supervisor_pid(), *studio.pids(run_id)):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not studio.processes())
    wait_for(studio.supervise)
    run = studio.over(run_id)
    assert run.status is RunStatus.LOST
    assert re.search(rf"Last seen at \S+ \S+ at step {studio.steps(run_id)[-1]}, train/loss", run.reason)
    assert_nothing_lost_or_doubled(studio, run_id)


def test_a_supervisor_told_to_leave_leaves_the_training_alone(studio):
    run_id = studio.queue("steps=30 hold=10")
    studio.supervise()
    studio.running_at(run_id, 5)
    pid = studio.supervisor_pid()
    assert os.getsid(pid) == pid  # its own session: Ctrl-C and a closed terminal do not reach it
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not studio.processes("sousa_engine.runs.supervisor"))
    assert studio.is_alive(studio.pids(run_id)[1])
    studio.let_go(run_id)
    wait_for(studio.supervise)
    assert studio.over(run_id).status is RunStatus.FINISHED
    assert_nothing_lost_or_doubled(studio, run_id)


def test_a_resumed_run_goes_on_as_the_same_run_whatever_ended_it(studio):
    for end in ("stop", "kill", "lose"):
        ended_and_resumed(studio, end)


def ended_and_resumed(studio, end):
    run_id = studio.queue("steps=60 hold=30 pause_s=0" + (" at=20 do=kill" if end == "kill" else ""))
    studio.supervise()
    if end != "kill":
        studio.running_at(run_id, 10)
    if end == "stop":
        studio.store.runs.request_stop(run_id)
    if end == "lose":
        pids = (studio.supervisor_pid(), *studio.pids(run_id))
        for pid in pids:  # held first: nobody can tell of another's death
            os.kill(pid, signal.SIGSTOP)
        for pid in reversed(pids):  # the trainer first: the kernel wakes a held one whose keeper dies, with SIGHUP
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not studio.processes())
        wait_for(studio.supervise)
    status = {"stop": RunStatus.STOPPED, "kill": RunStatus.FAILED, "lose": RunStatus.LOST}[end]
    assert studio.over(run_id).status is status
    studio.let_go(run_id)
    studio.store.runs.resume(run_id, "Resumed.")
    wait_for(lambda: studio.supervise() or studio.processes("sousa_engine.runs.supervisor"))
    run = studio.over(run_id)
    assert (run.status, run.reason, run.attempts) == (RunStatus.FINISHED, None, 1)
    assert len(run.earlier_ms) == 1 and run.started_at_ms >= run.earlier_ms[0][1]
    assert_nothing_lost_or_doubled(studio, run_id)
    assert len(studio.steps(run_id)) == 60
    assert {status.value, "resumed", "finished"} <= set(studio.kinds(run_id))


_ENSURE_EIGHTFOLD = """
import os, sys
from pathlib import Path
from sousa_engine.runs import ensure
from sousa_engine.workspace import Workspace
workspace = Workspace(root=Path(sys.argv[1]))
wait, go = os.pipe()
children = []
for _ in range(8):
    if (child := os.fork()) == 0:
        os.close(go)
        os.read(wait, 1)  # all are let go at once, when the pipe is closed
        os._exit(int(ensure.ensure(workspace, sys.argv[2:])))
    children.append(child)
os.close(go)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_eight_calls_of_ensure_at_once_make_one_supervisor(studio):
    command = [sys.executable, "-c", _ENSURE_EIGHTFOLD, str(studio.workspace.root), *DOUBLE, "--idle-exit-s", "30"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
    assert sorted(json.loads(done.stdout)) == [0] * 7 + [1], done.stderr
    run_id = studio.queue("steps=2")
    assert studio.over(run_id).status is RunStatus.FINISHED
    assert len(studio.processes("sousa_engine.runs.supervisor")) == 1


def test_two_supervisors_never_start_the_same_run(studio):
    """Someone deleted the lock file of a living supervisor, so a second one could start beside it."""
    assert studio.supervise()
    studio.supervisor_pid()
    studio.workspace.supervisor_lock.unlink()
    assert studio.supervise()
    wait_for(lambda: len(studio.processes("sousa_engine.runs.supervisor")) == 2)
    runs = [studio.queue("steps=5 pause_s=0") for _ in range(4)]
    for run_id in runs:
        run = studio.over(run_id)
        assert (run.status, run.attempts) == (RunStatus.FINISHED, 1), run.reason
        assert studio.kinds(run_id).count("claimed") == 1
        assert_nothing_lost_or_doubled(studio, run_id)
    assert len({studio.run(run_id).facts["pid"] for run_id in runs}) == 4


def test_runs_queued_around_the_moment_of_idle_exit_are_all_carried_out(studio):
    rng = random.Random(2)
    for _ in range(4):
        run_id = studio.queue("steps=1 pause_s=0")
        studio.supervise(idle_exit_s=0.0)
        assert studio.over(run_id).status is RunStatus.FINISHED
        time.sleep(rng.random() * 0.4)  # the next one comes anywhere around the exit
    wait_for(lambda: not studio.processes())
