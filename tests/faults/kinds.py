"""The kinds of fault. Each is played in rounds, one run a round, at moments drawn from the seed; see `KINDS`."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sousa_engine.core.records import Run, RunStatus, Sweep
from sousa_engine.maintenance import check
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.training import resume
from sousa_engine.workspace import locks, run_files, spool
from tests.faults.ground import KEEPER, SUPERVISOR, TRAINER, Ground, Pace, Tally

SLOW_SAVES = "steps=64 pause_s=0.005 every=8 save_s=0.15"
LONGER = "steps=200 pause_s=0.005 every=8"
SHORT = "steps=16 pause_s=0.005 every=8"
_MANY_ROUNDS = 20  # from here on, every step of an attempt gets its crash
_DISK_MIB = 8
_DAY_MS = 86_400_000
_ODD_LINES = [
    b'{"k":"facts","t":1,"facts":{"weights_label":"\\ud800"}}',
    b'{"k":"facts","t":1,"facts":{"earlier":5}}',
    b'{"k":"metrics","t":1,"step":2,"m":{"a":' + b"1" * 400 + b"}}",
    b'{"k":"event","t":2305843009213693952,"kind":"x","message":"y"}',
    b"[" * 100_000,
    bytes(5 << 20),
]
_ODD_VALUES = [
    "config_json = json_set(config_json, '$.training.next', 1)",
    "config_json = json_set(config_json, '$.training.lr', 'fast')",
    """facts_json = '{"earlier": 5}'""",
    "setting_json = '[]'",
    "tags_json = '[5]'",
]

_ODD_CONFIGS: list[Callable[[Path], object]] = [
    lambda file: file.write_text('{"traini'),
    lambda file: file.write_text('{"training": {"lr": "fast"}}'),
    lambda file: file.write_bytes(b"\xff" * 5000),
    lambda file: file.symlink_to("/"),
    Path.mkdir,
    os.mkfifo,
]


def kill_trainer(ground: Ground) -> None:
    _kill(ground, TRAINER, "signal 9 (SIGKILL)")


def kill_keeper(ground: Ground) -> None:
    _kill(ground, KEEPER, "keeper")


def kill_supervisor(ground: Ground) -> None:
    """The run must not notice: it finishes, and nothing of it was trained twice."""
    run_id = ground.queue()
    _at_a_moment(ground, run_id)
    ground.kill(next(iter(ground.processes(SUPERVISOR)), None))
    ground.settle(run_id, lambda run: _finished(run) and _was_trained_once(ground, run))


def kill_everything(ground: Ground) -> None:
    run_id = ground.queue()
    _at_a_moment(ground, run_id)
    ground.kill_everything()
    # The trainer first, and its keeper had the time to say so; or the keeper, or both at once.
    ground.settle(run_id, lambda run: _finished(run) or "kill" in (run.reason or "").lower())


def stop_during_checkpoint(ground: Ground) -> None:
    """SIGTERM while a checkpoint is being written: it is finished, another one follows, and the run is STOPPED."""
    run_id = ground.queue(SLOW_SAVES)
    keeper = ground.pid(KEEPER, run_id)
    if _in_a_checkpoint(ground, run_id):
        ground.moment(0.15)
        ground.kill(keeper, signal.SIGTERM)  # as the supervisor would, and now: not when it next looks
        ground.store.runs.request_stop(run_id)
    ground.settle(run_id, lambda run: run.status is RunStatus.STOPPED and "checkpoint was saved" in (run.reason or ""))


def kill_during_checkpoint(ground: Ground) -> None:
    run_id = ground.queue(SLOW_SAVES)
    trainer = ground.pid(TRAINER, run_id)
    if _in_a_checkpoint(ground, run_id):
        ground.moment(0.15)
        ground.kill(trainer)
    ground.settle(run_id, lambda run: "signal 9 (SIGKILL)" in (run.reason or ""))


def fill_disk(ground: Ground) -> None:
    """Nothing can be written for a while, sometimes to a supervisor that is new; then there is space again."""
    run_id = ground.queue(LONGER)
    ground.supervise()
    if ground.random.random() < 0.7:
        ground.pid(TRAINER, run_id)
    ground.moment(ground.pace.start_s + 1)
    ballast = ground.workspace.root / "ballast"
    _fill(ballast)
    if ground.random.random() < 0.3:
        ground.kill(next(iter(ground.processes(SUPERVISOR)), None))
        ground.supervise()
    ground.moment(3)
    ballast.unlink()
    ground.settle(
        run_id,
        lambda run: _finished(run) or "disk is full" in run.reason.lower() or "in 3 attempts" in run.reason,
    )


def two_supervisors(ground: Ground) -> None:
    """Someone removed the lock file, so a second one runs beside the first; sometimes one of them is killed."""
    ground.supervise(more=1)
    run_id = ground.queue()
    if ground.random.random() < 0.5:
        ground.moment(ground.pace.start_s + ground.pace.train_s)
        ground.kill(ground.random.choice(ground.processes(SUPERVISOR) or [None]))
    ground.settle(run_id, lambda run: _finished(run) and _was_trained_once(ground, run))


def crash_at_a_step(ground: Ground, module: str, step: str) -> None:
    """One process of an attempt kills itself right before this step of it, and only the first that comes there."""
    mark = ground.ledgers / f"{ground.workspace.root.name}.crashed"
    mark.unlink(missing_ok=True)
    ground.kill_everything()
    ground.env["FAULTS_CRASH"] = f"{module}|{step}|{mark}"
    run_id = ground.queue()
    ground.settle(
        run_id,
        # What is done again depends on timing: how often a spool was looked at, say.
        lambda run: (mark.exists() or "again" in step) and (_finished(run) or "kill" in run.reason.lower()),
    )


def move_clock(ground: Ground) -> None:
    """To the past or the future, by a second or by years, once or twice while a run starts and trains."""
    run_id = ground.queue()
    ground.supervise()
    for _ in range(ground.random.randint(1, 2)):
        ground.moment(0.6 * (ground.pace.start_s + ground.pace.train_s))
        days = ground.random.choice([1 / 86400, 1 / 24, 1, 400, 4000]) * ground.random.choice([-1, 1])
        _set_clock(ground, round(days * _DAY_MS))
    asked = ground.random.random() < 0.3
    if asked:
        ground.store.runs.request_stop(run_id)
    ground.settle(
        run_id,
        lambda run: (
            (_finished(run) and _was_trained_once(ground, run))
            or (asked and run.status is RunStatus.STOPPED and "in time" not in run.reason)
        ),
    )


def recycle_pid(ground: Ground) -> None:
    """Those who are killed leave their pids to another program: it must not be hurt, nor taken for them."""
    run_id = ground.queue()
    ground.pid(TRAINER, run_id)
    ground.moment_of_training(run_id)
    if ground.random.random() < 0.5:
        ground.kill_everything()
    else:
        ground.kill(next(iter(ground.processes(KEEPER, run_id)), None))
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        note_path = ground.workspace.run_dir(run_id) / run_files.KEEPER
        if note := run_files.read_json(note_path):
            run_files.write_json(note_path, {**note, "pid": bystander.pid, "trainer_pid": bystander.pid})
        ground.store.runs.request_stop(run_id, at_once=ground.random.random() < 0.5)
        ground.settle(run_id, lambda run: bystander.poll() is None)
    finally:
        bystander.kill()
        bystander.wait()


def suspend(ground: Ground) -> None:
    """SIGSTOP, as a debugger or a freezer sends it: a stop ends the run all the same, and its slot is free."""
    run_id = ground.queue(LONGER)
    at_once = ground.random.random() < 0.5
    pid = ground.pid(TRAINER if at_once and ground.random.random() < 0.5 else KEEPER, run_id)
    ground.moment_of_training(run_id)
    ground.kill(pid, signal.SIGSTOP)
    ground.store.runs.request_stop(run_id, at_once=at_once)
    ground.settle(run_id, lambda run: _finished(run) or run.status is RunStatus.STOPPED)


def cut_spool(ground: Ground) -> None:
    """A power cut: runs.db kept what the end of the spool did not. The cut is anywhere, often inside a line."""
    run_id = ground.queue(LONGER)
    pid = ground.pid(TRAINER, run_id)
    ground.moment_of_training(run_id)
    ground.kill(pid, signal.SIGSTOP)
    file = ground.workspace.run_dir(run_id) / run_files.SPOOL
    attempt = Ledger(ground.store).attempt
    ground.wait(lambda: attempt(run_id).spool_offset >= spool.end_of(file), "a spool that was read")
    ground.kill(pid)  # first: the kernel lets a stopped process go on when its parent dies
    ground.kill_everything()
    size = run_files.size(file)
    kept = ground.random.randint(max(0, size - 400), size)
    with contextlib.suppress(FileNotFoundError), file.open("r+b") as opened:
        opened.truncate(kept)
        if ground.random.random() < 0.5:
            opened.truncate(size)  # the same length, and zeros
    ground.settle(run_id, lambda run: _finished(run) or run.status is RunStatus.LOST or "kill" in (run.reason or ""))


def odd_items(ground: Ground) -> None:
    """An odd row before a run, a folder of another program beside it, an odd line in it. A rebuild finds them all."""
    odd, run_id = ground.queue(), ground.queue()
    with ground.store.connection.writing() as db:
        db.execute(f"UPDATE runs SET {ground.random.choice(_ODD_VALUES)} WHERE id = ?", [odd])
    folder = ground.workspace.runs / f"260131-1423{ground.tally.rounds:02d}-odd2"
    folder.mkdir()
    ground.random.choice(_ODD_CONFIGS)(folder / run_files.CONFIG)
    ground.first_row(run_id)
    with (ground.workspace.run_dir(run_id) / run_files.SPOOL).open("ab") as file:
        file.write(ground.random.choice(_ODD_LINES) + b"\n")
    ground.settle(run_id, lambda run: _finished(run) and _was_trained_once(ground, run))
    ground.expect("untrue", "cannot be read" in (ground.over(odd).reason or ""), f"{odd} was trained")
    ground.kill_everything()
    before = ground.listed()
    with ground.closed():
        ground.command("db", "rebuild")
    ground.expect("untrue", ground.listed() == before, "a rebuild changed the runs")
    ground.count(ground.run(run_id), lambda run: True)


def damage_log(ground: Ground) -> None:
    """A power cut, or a bad disk: runs.db-wal is cut anywhere, or has other bytes. What `db check` says is done."""
    run_id = _die_while_training(ground)
    with ground.closed():
        _damage(ground.wal, ground.random)
        if "db rebuild" in ground.command("db", "check"):
            ground.command("db", "rebuild")
    _settle_killed(ground, run_id)
    ground.count_others(run_id)


def kill_rebuild(ground: Ground) -> None:
    """Killed, then repeated. What is in no folder, such as a note, is kept unless runs.db cannot be read."""
    run_id = _die_while_training(ground)
    ground.store.marks.set_note(run_id, "to be kept")
    before = ground.listed()
    is_readable = ground.random.random() < 0.7
    with ground.closed():
        if not is_readable:
            os.truncate(ground.workspace.db, 2048)
        ground.command("db", "rebuild", kill=True)
        ground.command("db", "rebuild")
    ground.expect("lost", ground.listed() == before or not is_readable, "the database is not as it was")
    _settle_killed(ground, run_id)
    ground.count_others(run_id)


def kill_restore(ground: Ground) -> None:
    """Killed, there is the old database or the copy; then repeated. What is newer comes back as the command says."""
    run_id = ground.queue(LONGER)
    _at_a_moment(ground, run_id)
    copy = check.backup(ground.workspace, ground.workspace.root / f"copy-{ground.tally.rounds}.db")
    ground.moment(ground.pace.train_s)
    ground.kill_everything()
    ground.store.marks.set_note(run_id, "newer than the copy")
    before = ground.listed()
    with ground.closed():
        ground.command("db", "restore", copy, kill=True)
        ground.expect("lost", ground.listed() in (before, ground.listed(copy)), "there is neither of both databases")
        said = ground.command("db", "restore", copy)
        if "db rebuild" in said:
            ground.command("db", "rebuild")
    ground.store.queue.resume()
    _settle_killed(ground, run_id)
    ground.count_others(run_id)


def kill_delete(ground: Ground) -> None:
    """Killed, all of the runs are there or none is; repeated, none is. The other runs stay."""
    kept, *gone = [ground.queue(SHORT) for _ in range(3)]
    for run_id in gone:
        ground.over(run_id)
    ground.command("delete", "--yes", *gone, kill=True)
    with Store.open(ground.workspace) as store:
        rows = {run_id for run_id in gone if store.runs.get(run_id)}
    folders = {run_id for run_id in gone if ground.workspace.run_dir(run_id).exists()}
    ground.expect("lost", rows == folders and len(rows) in (0, len(gone)), f"of {gone}: rows {rows}, folders {folders}")
    for run_id in rows:
        ground.count(ground.run(run_id), _finished)
    ground.command("delete", "--yes", *gone)
    ground.expect("untrue", not (left := ground.left_of(gone)), f"of {gone}, there is {left}")
    ground.settle(kept, _finished)
    ground.count_others(kept)


def kill_sweep(ground: Ground) -> None:
    """Killed while it plans or queues, it is repeated if there is no sweep; then those who step it are killed."""
    name, rates, seeds = f"round {ground.tally.rounds}", (0.001, 0.002, 0.003), (0, 1)
    sampler = ground.random.choice([["grid"], ["tpe", "--trials", len(rates)], ["asha", "--trials", len(rates)]])
    words = ["sweep", "--detach", "data=micro", "model=ast-mini", "--name", name, "--seeds", *seeds]
    words += ["--axis", f"training.lr={','.join(map(str, rates))}", "--sampler", *sampler]
    ground.wait(lambda: locks.is_held(ground.workspace.supervisor_lock), "supervisor")  # else it starts a real one
    ground.command(*words, kill=True)
    if not _sweeps(ground, name):
        ground.command(*words)
    (sweep,) = _sweeps(ground, name)
    for _ in range(2):
        ground.moment(ground.pace.start_s + ground.pace.train_s)
        ground.kill(next(iter(ground.processes(SUPERVISOR)), None))
        ground.supervise()
    ground.wait(lambda: _sweeps(ground, name)[0].status.is_over, "end of the sweep")
    runs = ground.store.sweeps.runs(sweep.id)
    trained = Counter((run.config.training.lr, run.config.seed) for run in runs)
    pruned = {run.config.training.lr for run in runs if run.is_pruned}
    wanted = {(rate, seed) for rate in rates for seed in seeds if seed == 0 or rate not in pruned}
    ground.expect("lost", set(trained) == wanted, f"{sampler[0]} of {wanted}: {trained}")
    ground.expect("doubled", max(trained.values()) == 1, f"{sampler[0]}: {trained}")
    for run in runs:
        ground.count(run, lambda run: _finished(run) or run.is_pruned)
        ground.tally.acknowledged += len(ground.ledger(run.id))
    ground.tally.rounds += 1


@dataclass(frozen=True, kw_only=True)
class Kind:
    """play: one round on a ground. rows: some are there in each ground's first round, whatever the random moments.

    own_disk: it needs a small disk of its own. clock: its clock can be moved. short: rounds in the suite's short cut.
    """

    title: str
    play: Callable[[Ground], None] | None
    rows: bool = False
    own_disk: bool = False
    clock: bool = False
    short: int = 2


KINDS = {
    "trainer": Kind(title="kill -9 of the trainer", play=kill_trainer, rows=True),
    "keeper": Kind(title="kill -9 of the keeper", play=kill_keeper, rows=True),
    "supervisor": Kind(title="kill -9 of the supervisor", play=kill_supervisor, rows=True),
    "everything": Kind(title="kill -9 of everything", play=kill_everything, rows=True),
    "stop-checkpoint": Kind(title="SIGTERM during a checkpoint", play=stop_during_checkpoint, rows=True),
    "kill-checkpoint": Kind(title="kill -9 during a checkpoint", play=kill_during_checkpoint, rows=True),
    "disk": Kind(title="disk full, then space again", play=fill_disk, own_disk=True),
    "two": Kind(title="two supervisors", play=two_supervisors, rows=True),
    "steps": Kind(title="crash between every two steps of a launch", play=None),
    "clock": Kind(title="clock moved", play=move_clock, clock=True),
    "pid": Kind(title="recycled pid", play=recycle_pid, rows=True),
    "suspended": Kind(title="SIGSTOP, then a stop", play=suspend, rows=True, short=0),
    "cut": Kind(title="spool cut inside a line", play=cut_spool, rows=True, short=0),
    "odd": Kind(title="odd rows, lines and folders", play=odd_items, rows=True, short=0),
    "log": Kind(title="damaged write-ahead log", play=damage_log, rows=True, short=1),
    "rebuild": Kind(title="kill -9 of `db rebuild`", play=kill_rebuild, rows=True, short=0),
    "restore": Kind(title="kill -9 of `db restore`", play=kill_restore, short=0),
    "delete": Kind(title="kill -9 of `delete`", play=kill_delete, rows=True, short=0),
    "sweep": Kind(title="kill -9 of `sweep` and of its steps", play=kill_sweep, rows=True, short=0),
}


def play(name: str, rounds: int, seed: str, *, beside: int = 1, pace: Pace | None = None) -> Tally:
    """Play a kind for so many rounds, on `beside` workspaces beside each other. Raises NoDisk where none can be made.

    pace: what was measured on another ground; else each ground measures its own. Every process is gone afterwards,
    whatever happened.
    """
    with tempfile.TemporaryDirectory(prefix="sousa-faults-", ignore_cleanup_errors=True) as folder:
        total, guard = Tally(), threading.Lock()
        todo = iter(_rounds(name, rounds, seed, Path(folder)))
        errors: list[BaseException] = []

        def next_round() -> Callable[[Ground], None] | None:
            with guard:
                return next(todo, None)

        def work(number: int) -> None:
            try:
                with _ground(name, Path(folder), number, seed) as ground:
                    if pace:
                        ground.pace = pace
                    elif name != "steps":
                        ground.measure()
                    while action := next_round():
                        _attempt(action, ground)
                    with guard:
                        total.add(ground.tally)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=[number]) for number in range(min(beside, max(1, rounds)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C: rounds that are under way end, with all their processes
            with guard:
                todo = iter(())
            for thread in threads:
                thread.join()
            raise
        if errors:
            raise errors[0]
        return total


class NoDisk(Exception):
    """A small disk cannot be made here: why."""


def steps_of_an_attempt(folder: Path) -> list[tuple[str, str]]:
    """(module, step) of the three processes, as a run without faults takes them, from its claim to its end."""
    (folder / "trace").mkdir()
    (folder / "clean").mkdir()
    with Ground(folder / "clean", _ledgers(folder), "", {"FAULTS_TRACE": str(folder / "trace")}) as ground:
        ground.measure()
    return [
        (module, step)
        for module in (SUPERVISOR, KEEPER, TRAINER)
        for step in (folder / "trace" / module).read_text().splitlines()
    ]


def _rounds(name: str, rounds: int, seed: str, folder: Path) -> list[Callable[[Ground], None]]:
    if name != "steps":
        action = KINDS[name].play
        assert action is not None
        return [action] * rounds
    found = steps_of_an_attempt(folder)
    random.Random(seed).shuffle(found)
    count = rounds if rounds < _MANY_ROUNDS else max(rounds, len(found))  # a short cut takes some steps only
    chosen = [found[number % len(found)] for number in range(count)]
    return [lambda ground, module=module, step=step: crash_at_a_step(ground, module, step) for module, step in chosen]


def _attempt(action: Callable[[Ground], None], ground: Ground) -> None:
    """One round. What the suite itself did not expect counts as a run without an end; the next round begins anew."""
    try:
        action(ground)
    except Exception:
        ground.tally.rounds += 1
        ground.tally.endless += 1
        ground.tally.notes.append(f"{ground.workspace.root.name}: {traceback.format_exc()}{ground.log()}")
        ground.kill_everything()


@contextlib.contextmanager
def _ground(name: str, folder: Path, number: int, seed: str) -> Iterator[Ground]:
    root = folder / f"{name}-{number}"
    root.mkdir()
    env = {}
    if KINDS[name].clock:
        env["FAULTS_CLOCK"] = str(folder / f"clock-{number}.ms")
        Path(env["FAULTS_CLOCK"]).write_text("0")
    with contextlib.ExitStack() as stack:
        if KINDS[name].own_disk:
            stack.enter_context(_small_disk(root))
        yield stack.enter_context(Ground(root, _ledgers(folder), f"{seed}/{name}/{number}", env))


def _ledgers(folder: Path) -> Path:
    (folder / "ledgers").mkdir(exist_ok=True)
    return folder / "ledgers"


@contextlib.contextmanager
def _small_disk(root: Path) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(root)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError as error:
        raise NoDisk(f"mount: {error}") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"mount: exit code {done.returncode}"])[0]
        raise NoDisk(f"a small tmpfs cannot be mounted: {said} Try as root, or after `unshare -rm`.")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(root)], check=False, timeout=30)


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def _set_clock(ground: Ground, offset_ms: int) -> None:
    clock = Path(ground.env["FAULTS_CLOCK"])
    fresh = clock.with_suffix(".new")
    fresh.write_text(str(offset_ms))
    fresh.replace(clock)


def _at_a_moment(ground: Ground, run_id: str) -> None:
    """Any of a run: in every second round while it trains, else most often so, or from the claim on."""
    ground.supervise()
    if ground.tally.rounds % 2 == 0 or ground.random.random() < 0.5:
        ground.pid(TRAINER, run_id)
        ground.moment_of_training(run_id)
    else:
        ground.moment(ground.pace.start_s)


def _in_a_checkpoint(ground: Ground, run_id: str) -> bool:
    """Wait until one is being written: one of the first four, drawn. False if the run was over before."""
    number = ground.random.randint(0, 3)
    folder = ground.workspace.run_dir(run_id) / resume.CHECKPOINTS
    seen: set[str] = set()

    def found() -> bool:
        seen.update(path.name for path in folder.glob(".step-*.tmp"))
        return len(seen) > number or ground.run(run_id).status.is_over

    deadline = time.monotonic() + 120
    ground.supervise()
    while not found():
        assert time.monotonic() < deadline, "no checkpoint within 120 s"
        time.sleep(0.005)
    return not ground.run(run_id).status.is_over


def _kill(ground: Ground, process: str, told: str) -> None:
    """At a moment that may come too late; told: words in the reason of a run that did not finish."""
    run_id = ground.queue()
    pid = ground.pid(process, run_id)
    ground.moment_of_training(run_id)
    ground.kill(pid)
    ground.settle(run_id, lambda run: _finished(run) or told in (run.reason or ""))


def _die_while_training(ground: Ground) -> str:
    """The id of a run whose processes were all killed."""
    run_id = ground.queue(LONGER)
    ground.pid(TRAINER, run_id)
    ground.moment_of_training(run_id)
    ground.kill_everything()
    return run_id


def _settle_killed(ground: Ground, run_id: str) -> None:
    ground.settle(run_id, lambda run: _finished(run) or run.status is RunStatus.LOST or "kill" in (run.reason or ""))


def _damage(file: Path, drawn: random.Random) -> None:
    at = drawn.randint(0, run_files.size(file))
    with file.open("r+b") as opened:
        if drawn.random() < 0.5:
            opened.truncate(at)
        else:
            opened.seek(at)
            opened.write(drawn.randbytes(drawn.choice([1, 100, 5000])))


def _sweeps(ground: Ground, name: str) -> list[Sweep]:
    return [sweep for sweep in ground.store.sweeps.all() if sweep.name == name]


def _finished(run: Run) -> bool:
    return run.status is RunStatus.FINISHED


def _was_trained_once(ground: Ground, run: Run) -> bool:
    return set(ground.ledger(run.id).values()) <= {1}
