"""What the fault suite puts into the processes of the product, from outside: by PYTHONPATH, never by their code.

FAULTS_CLOCK=FILE    the system's clock is moved by as many milliseconds as stand in FILE now
FAULTS_TRACE=FOLDER  every step of a process that touches FAULTS_ROOT is written to FOLDER/<module>, twice at most
FAULTS_CRASH=MODULE|STEP|MARK   the first process that runs MODULE kills itself right before STEP; MARK: it happened
FAULTS_LOOKED=FILE   is made when the process opens a database in FAULTS_ROOT for the first time

No imports but what every Python has loaded by then: it runs in each process, before all else.
A step is what Python's audit events tell before it happens: a file opened, renamed, removed or locked, a folder made,
a process started; and of SQLite, each commit.
"""

import os
import re
import signal
import sys

_CHANGES = {"os.mkdir": 0, "os.remove": 0, "os.rename": 1, "os.rmdir": 0}  # event -> which argument is the path


def _move_clock(file):
    import time

    real = time.time_ns

    def moved():
        with open(file) as text:  # noqa: PTH123
            return real() + int(text.read()) * 1_000_000

    time.time_ns = moved
    time.time = lambda: moved() / 1e9


def _tell_of_a_look(file, root):
    def hook(event, args):
        nonlocal file
        if file and event == "sqlite3.connect" and root in str(args[0]):
            file, told = None, file
            os.close(os.open(told, os.O_CREAT | os.O_WRONLY))

    sys.addaudithook(hook)


class _Steps:
    def __init__(self, module, root):
        self.module, self.root = module, root
        self.trace = os.environ.get("FAULTS_TRACE")
        self.crash_module, self.crash_step, self.mark = (os.environ.get("FAULTS_CRASH") or "||").split("|")
        self.seen, self.inside = {}, False
        self.writes = ""  # the first statement that the open transaction makes

    def hook(self, event, args):
        if self.inside:
            return
        self.inside = True
        try:
            if name := self.name(event, args):
                self.step(name)
        finally:
            self.inside = False

    def name(self, event, args):
        if event == "subprocess.Popen":
            return f"start {_module([str(word) for word in args[1]])}"
        if event == "fcntl.flock":
            return self.on_path("lock", os.readlink(f"/proc/self/fd/{args[0]}"))  # noqa: PTH115
        if event == "open" and args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR):
            return self.on_path("write", args[0])
        if event in _CHANGES:
            return self.on_path(event.removeprefix("os."), args[_CHANGES[event]])
        return None

    def on_path(self, what, path):
        if isinstance(path, (str, os.PathLike)) and self.root in (path := os.fspath(path)):
            return f"{what} {_general(os.path.basename(path))}"  # noqa: PTH119
        return None

    def watch_sqlite(self):
        import sqlite3

        connect = sqlite3.connect

        def watched(*args, **kwargs):
            connection = connect(*args, **kwargs)
            connection.set_trace_callback(self.statement)
            return connection

        sqlite3.connect = watched

    def statement(self, sql):
        words = sql.split()
        if words[:1] == ["BEGIN"]:
            self.writes = ""
        elif words[:1] == ["COMMIT"] and self.writes:
            self.step(f"commit {self.writes}")
        elif words and words[0] in ("INSERT", "UPDATE", "DELETE", "REPLACE") and not self.writes:
            self.writes = _general(" ".join(words[:6]))

    def step(self, name):
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.seen[name] > 2:
            return
        name += " again" if self.seen[name] == 2 else ""
        if self.trace:
            with open(f"{self.trace}/{self.module}", "a") as file:  # noqa: PTH123
                file.write(name + "\n")
        if self.module == self.crash_module and name == self.crash_step:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


def _general(text):
    """Without what differs from run to run."""
    return re.sub(r"\d+", "N", re.sub(r"\d{6}-\d{6}-\w{4}", "RUN", text))


def _module(argv):
    return argv[argv.index("-m") + 1] if "-m" in argv else "?"


if os.environ.get("FAULTS_CLOCK"):
    _move_clock(os.environ["FAULTS_CLOCK"])
if os.environ.get("FAULTS_LOOKED"):
    _tell_of_a_look(os.environ["FAULTS_LOOKED"], os.environ["FAULTS_ROOT"])
if os.environ.get("FAULTS_TRACE") or os.environ.get("FAULTS_CRASH"):
    steps = _Steps(_module(sys.orig_argv), os.environ["FAULTS_ROOT"])
    sys.addaudithook(steps.hook)
    if steps.module == "sousa_engine.runs.supervisor":
        steps.watch_sqlite()
