"""What an earlier version started lives on: its trainers are adopted and stopped, its supervisor is replaced.

A folder holds a stand-in package with the module names of that version; what stands behind them is today's code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest
from waiting import wait_for

from sousa_engine.core.config import build
from sousa_engine.core.records import RunStatus
from sousa_engine.runs import ensure
from sousa_engine.store import Store
from sousa_engine.workspace import PROJECT_ROOT, Workspace, locks, run_files

pytestmark = pytest.mark.process
OPTIONS = ("--trainer-module", "tests.fake_trainer", "--grace-s", "0.5")
SUPERVISOR, KEEPER, TRAINER = (f"sousa_engine.{name}" for name in ("supervisor", "keeper", "trainer"))
STAND_IN = {
    "__init__": f"__version__ = '0.1.0'\n__path__.append({str(PROJECT_ROOT / 'sousa_engine')!r})\n",
    "keeper": "from sousa_engine.runs import keeper\nkeeper.main()\n",
    "trainer": "import sys\nfrom tests import fake_trainer\nsys.exit(fake_trainer.main())\n",
    "supervisor": (
        "import os\nfrom pathlib import Path\n"
        "from sousa_engine.runs import supervisor\nfrom sousa_engine.runs.executors import local\n"
        "from sousa_engine.workspace import processes\n"
        f"local.KEEPER_MODULE, processes.PROJECT_ROOT = {KEEPER!r}, Path.cwd()\nsupervisor.main()\n"
    ),
}


class Earlier:
    """A workspace in which a supervisor of an earlier version trains one run."""

    def __init__(self, workspace, folder, words):
        self.workspace, self.folder = workspace, folder
        self.store = Store.open(workspace)
        self.run_id = self.store.runs.enqueue(build({"name": words})).id
        (folder / "sousa_engine").mkdir(parents=True)
        for name, code in STAND_IN.items():
            (folder / "sousa_engine" / f"{name}.py").write_text(code)
        self.supervisor = self.start(SUPERVISOR, str(workspace.root), "--trainer-module", TRAINER, "--grace-s", "0.5")
        wait_for(lambda: (run := self.run()).progress and run.progress.done >= 5 and run.status is RunStatus.RUNNING)
        assert locks.signed_by(workspace.supervisor_lock) == self.supervisor.pid
        assert self.running(KEEPER) == [self.pids()[0]] and self.running(TRAINER)

    def start(self, module, *words):
        env = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
        return subprocess.Popen([sys.executable, "-m", module, *words], cwd=self.folder, env=env)

    def run(self):
        return self.store.runs.get(self.run_id)

    def pids(self):
        """(keeper, trainer)"""
        note = run_files.read_json(self.workspace.run_dir(self.run_id) / run_files.KEEPER)
        return note["pid"], note["trainer_pid"]

    def running(self, module=""):
        """Pids of this workspace's processes that `python -m module` started; of all of them for ""."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            words = process.info["cmdline"] or []
            if any(str(self.workspace.root) in word for word in words) and module in (words[2:3] or [""])[0]:
                found.append(process.info["pid"])
        return found

    def adopted(self):
        return any(event.kind == "adopted" for event in self.store.runs.events(self.run_id))

    def over(self):
        wait_for(lambda: self.run().status.is_over)
        return self.run()


@pytest.fixture
def earlier(workspace, tmp_path):
    made = []

    def begin(words):
        made.append(Earlier(workspace, tmp_path / "earlier", words))
        return made[-1]

    yield begin
    for one in made:
        for module in ("supervisor", ""):  # first the one that would start what we end
            for pid in one.running(module):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        one.supervisor.wait()
        wait_for(lambda one=one: not one.running())
        one.store.close()


def test_a_run_of_an_earlier_version_is_adopted_and_trains_to_its_end(earlier):
    studio = earlier("steps=60 hold=20")
    trainer = studio.pids()[1]
    assert ensure.ensure(studio.workspace, OPTIONS)
    assert studio.supervisor.wait(timeout=60) == 0
    wait_for(studio.adopted)
    assert not ensure.ensure(studio.workspace, OPTIONS), "today's supervisor stays"
    (studio.workspace.run_dir(studio.run_id) / "go").touch()
    run = studio.over()
    assert (run.status, run.attempts, run.facts["pid"]) == (RunStatus.FINISHED, 1, trainer)
    assert studio.store.metrics.summaries([studio.run_id])[studio.run_id]["train/loss"].last_step == 60


def test_an_open_studio_replaces_a_supervisor_of_an_earlier_version_and_stops_its_run(earlier):
    studio = earlier("steps=100000")
    assert ensure.revive(studio.workspace)
    assert studio.supervisor.wait(timeout=60) == 0
    wait_for(studio.adopted)
    assert not ensure.revive(studio.workspace)
    studio.store.runs.request_stop(studio.run_id)
    run = studio.over()
    assert run.status is RunStatus.STOPPED and run.reason.startswith("Stopped at ")


def test_a_trainer_of_an_earlier_version_that_lost_its_keeper_and_does_not_listen_is_ended(earlier):
    studio = earlier("steps=100000 at=3 do=deaf")
    keeper, trainer = studio.pids()
    assert ensure.ensure(studio.workspace, OPTIONS)
    wait_for(studio.adopted)
    os.kill(keeper, signal.SIGKILL)
    assert "keeper was killed" in studio.over().reason
    wait_for(lambda: trainer not in studio.running())


@contextlib.contextmanager
def asleep(*words, **options):
    """A process that waits with these words in its command line until it is killed."""
    code = "import signal; signal.sigwait([signal.SIGUSR1])"
    process = subprocess.Popen([sys.executable, "-c", code, *words], **options)
    try:
        wait_for(lambda: words[0] in psutil.Process(process.pid).cmdline())
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_supervisor_of_another_workspace_is_left_alone(workspace, tmp_path):
    """Its pid stands in our lock file only because pids are given again."""
    workspace.runs.mkdir(parents=True)
    with asleep(SUPERVISOR, str(tmp_path / "another")) as stranger:
        lock = locks.take(workspace.supervisor_lock)
        workspace.supervisor_lock.write_text(f"{stranger.pid}\n")
        Store.open(workspace).close()
        assert not ensure.ensure(workspace) and not ensure.revive(workspace)
        os.close(lock)
        assert stranger.poll() is None


def test_a_supervisor_of_this_workspace_is_known_by_any_spelling_of_its_folder(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    workspace = Workspace(root=tmp_path / "here")
    workspace.runs.mkdir()
    lock = locks.take(workspace.supervisor_lock)
    with asleep(SUPERVISOR, "link", cwd=tmp_path, pass_fds=[lock]) as former:
        workspace.supervisor_lock.write_text(f"{former.pid}\n")
        os.close(lock)
        assert ensure.ensure(workspace, ("--idle-exit-s", "0"))
        assert former.wait(timeout=60) == -signal.SIGTERM
    wait_for(lambda: not locks.is_held(workspace.supervisor_lock))
