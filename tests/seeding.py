"""Fill a workspace with realistic runs through Store and the spool alone: for tests of pages and for screenshots.

seeded = seed(workspace)              # finished, random weights, failed, stopped, lost, running, queued
training = Training.begin(workspace)  # one run that a test moves forward by hand
training.steps(20); training.finish()
    with no_supervisor(workspace): ...    # around a studio that shows runs which are not over
"""

from __future__ import annotations

import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import IO, Any

import numpy as np

from sousa_engine import targets
from sousa_engine.core.config import RunConfig, build
from sousa_engine.core.records import UPDATE, Prediction, Progress, Run, RunStatus, SweepRun, SweepStatus
from sousa_engine.core.rudiments import RUDIMENTS
from sousa_engine.data import synth
from sousa_engine.store import Store, migrations
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import PROJECT_ROOT, Workspace, run_files, spool
from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint

CLASSES = tuple(rudiment.slug for rudiment in RUDIMENTS)
CLIPS = {"train": 600, "valid": 200, "test": 200}
ATTENTION, MLP = ("attention.",), ("attention.", "mlp.")
VERSIONS = {
    "python": "3.11.9", "sousa-engine": "0.1.0", "torch": "2.13.0", "torchaudio": "2.11.0",
    "transformers": "5.23.0", "peft": "0.21.2", "accelerate": "1.15.0", "numpy": "2.4.6",
}  # fmt: skip


def config(
    *,
    seed: int = 0,
    roles: tuple[str, ...] = MLP,
    r: int = 8,
    name: str = "",
    weights: str = "pretrained",
    **training: Any,
) -> RunConfig:
    outline = targets.load_outline("ast-mini")
    paths = [node.path for node in outline.nodes if node.role.startswith(roles)]
    return RunConfig.model_validate(
        {
            "name": name,
            "model": {"variant": "ast-mini", "weights": weights},
            "lora": {
                "targets": [target.model_dump() for target in outline.targets(paths)],
                "r": r,
                "alpha": 2 * r,
                "target_set": "attention" if roles == ATTENTION else "attention+mlp",
            },
            "data": {"dataset": "tiny"},
            "training": training,
            "seed": seed,
        }
    )


@cache
def _real_test_clips() -> tuple[synth.ClipPlan, ...]:
    """For slices by what is known of a clip."""
    return tuple(plan for plan in synth.plan(synth.PRESETS["tiny"]) if plan.split == "test")


class Training:
    """A trainer's and a supervisor's part, played step by step: what is written is what they would write."""

    def __init__(self, workspace: Workspace, run: Run, *, reach: float, clock: list[int], slot: str):
        self.workspace, self.run, self.reach, self.clock, self.slot = workspace, run, reach, clock, slot
        self.folder = workspace.run_dir(run.id)
        self.nonce = f"nonce-{run.id}"
        self.started_ms = clock[0]
        self.step = 0
        self.taken = 0  # bytes of the spool that the store has
        self.random = np.random.default_rng(run.config.seed + 1000 * run.config.lora.r + round(1000 * reach))

    @classmethod
    def begin(
        cls,
        workspace: Workspace,
        run_config: RunConfig | None = None,
        *,
        reach: float = 0.6,
        at_ms: int | None = None,
        slot: str = "cpu",
        prepared: bool = True,
    ) -> Training:
        """Queue a run, claim it for `slot` and let its trainer start. The queue must be empty before."""
        with Store.open(workspace, clock_ms=lambda: at_ms or time.time_ns() // 1_000_000) as store:
            run = store.runs.enqueue(run_config or config())
        return cls.take(workspace, run, reach=reach, at_ms=at_ms, slot=slot, prepared=prepared)

    @classmethod
    def take(
        cls,
        workspace: Workspace,
        run: Run,
        *,
        reach: float = 0.6,
        at_ms: int | None = None,
        slot: str = "cpu",
        prepared: bool = True,
    ) -> Training:
        """Claim a queued run, the first of the queue, and let its trainer start."""
        clock = [at_ms or time.time_ns() // 1_000_000]
        with Store.open(workspace, clock_ms=lambda: clock[0]) as store:
            training = cls(workspace, run, reach=reach, clock=clock, slot=slot)
            clock[0] += 400
            claimed = Ledger(store).claim(slot, training.nonce)
            assert claimed is not None and claimed.id == run.id, "another run was first, or the slot was held"
            training.folder.mkdir(parents=True)
            run_files.write_json(training.folder / run_files.CONFIG, run.config.model_dump(mode="json"))
            clock[0] += 300
            training.started_ms = clock[0]
            note = {"nonce": training.nonce, "pid": None, "trainer_pid": -1, "started_ms": clock[0], "argv": []}
            run_files.write_json(training.folder / run_files.KEEPER, note)
            assert Ledger(store).mark_running(run.id, training.nonce, started_at_ms=clock[0])
        training.log("device cpu, torch 2.13.0, 2 threads")
        training.report(progress=Progress(phase="preparing", done=0, total=1))
        if prepared:
            training.prepare()
        return training

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(CLIPS["train"] / self.run.config.training.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.run.config.training.max_epochs

    def prepare(self) -> None:
        label = "random weights" if self.run.is_random else "pretrained: ast-mini, 20,000 synthesised patterns"
        self.log(f"weights: {label}")
        outline = targets.load_outline("ast-mini")
        lora = self.run.config.lora
        counts = targets.count(
            outline, [t.path for t in lora.targets], r=lora.r, head=lora.head, num_classes=len(CLASSES)
        )
        self.clock[0] += 6_000
        self.report(
            progress=Progress(phase="preparing", done=1000, total=1000),
            facts={
                "versions": VERSIONS,
                "device": self.slot,
                "weights_label": label,
                "parameters": {"trainable": counts.trainable, "total": counts.total, "lora_modules": counts.layers},
                "data": {
                    "name": "tiny", "classes": 40, "clip_s": 2.0, "clips": CLIPS, "majority_test": 0.025, "notes": [],
                },
                "prepare_s": 6.1,
            },
        )  # fmt: skip

    def steps(self, count: int, *, diverge_at: int | None = None) -> None:
        """`count` optimiser steps, with validation where an epoch ends."""
        with spool.SpoolWriter(self.folder / run_files.SPOOL, clock_ms=lambda: self.clock[0]) as writer:
            for _ in range(count):
                self.step += 1
                self.clock[0] += 480
                epoch = 1 + (self.step - 1) // self.steps_per_epoch
                loss, accuracy = self._at(self.step, noise=0.09)
                if diverge_at and self.step >= diverge_at:
                    loss = math.nan
                rate = self.run.config.training.lr * min(1, 10 * self.step / self.total_steps)
                batch = self.run.config.training.batch_size
                accuracy = round(accuracy * batch) / batch
                values = {"train/loss": loss, "train/accuracy": accuracy, "train/lr": rate}
                writer.metrics(self.step, values, epoch=epoch, n=batch)
                if self.step % self.steps_per_epoch == 0:
                    self._validate(writer, epoch)
            writer.progress(
                Progress(
                    phase="training", done=self.step, total=self.total_steps, epoch=epoch,
                    max_epochs=self.run.config.training.max_epochs, eta_s=0.48 * (self.total_steps - self.step),
                )
            )  # fmt: skip
        self._ingest()

    def finish(self) -> Run:
        """The rest of the steps, the test split, the predictions."""
        if self.step < self.total_steps:
            self.steps(self.total_steps - self.step)
        predictions = [*self._predictions("valid"), *self._predictions("test")]
        spool.write_predictions(self.folder / run_files.PREDICTIONS, predictions)
        test = [p for p in predictions if p.split == "test"]
        accuracy, f1 = _scores(test)
        loss = self._at(self.step, noise=0)[0] + 0.25
        self.clock[0] += 900
        with spool.SpoolWriter(self.folder / run_files.SPOOL, clock_ms=lambda: self.clock[0]) as writer:
            writer.metrics(
                self.step, {"test/accuracy": accuracy, "test/macro_f1": f1, "test/loss": loss},
                epoch=self.run.config.training.max_epochs, n=len(test),
            )  # fmt: skip
            writer.progress(Progress(phase="testing", done=1, total=1))
            writer.facts({"train_s": 0.48 * self.step, "best_step": self.step, "peak_memory_mib": 812.4})
        (self.folder / "adapter").mkdir()
        self.log(f"test accuracy {accuracy:.3f} (n={len(test)}), on the checkpoint of epoch 10")
        self._ingest()
        with Store.open(self.workspace) as store:
            Ledger(store).save_predictions(self.run.id, predictions)
        return self.end(RunStatus.FINISHED, None)

    def end(self, status: RunStatus, reason: str | None) -> Run:
        """With the notes that trainer and keeper leave; a lost run is one that left none."""
        if status is not RunStatus.LOST:
            run_files.write_json(self.folder / run_files.RESULT, {"outcome": status.value, "reason": reason})
            codes = {RunStatus.FINISHED: run_files.EXIT_FINISHED, RunStatus.STOPPED: run_files.EXIT_STOPPED}
            note = {"nonce": self.nonce, "exit_code": codes.get(status, 1), "signal": None, "steps": []}
            note |= {"started_ms": self.started_ms, "ended_ms": self.clock[0]}
            run_files.write_json(self.folder / run_files.EXIT, note)
        with Store.open(self.workspace, clock_ms=lambda: self.clock[0]) as store:
            assert Ledger(store).finish(self.run.id, status, reason, nonce=self.nonce, ended_at_ms=self.clock[0])
            run = store.runs.get(self.run.id)
        assert run is not None
        return run

    def report(self, *, progress: Progress | None = None, facts: Mapping[str, Any] | None = None) -> None:
        with spool.SpoolWriter(self.folder / run_files.SPOOL, clock_ms=lambda: self.clock[0]) as writer:
            if progress:
                writer.progress(progress)
            if facts:
                writer.facts(facts)
        self._ingest()

    def event(self, kind: str, message: str) -> None:
        with spool.SpoolWriter(self.folder / run_files.SPOOL, clock_ms=lambda: self.clock[0]) as writer:
            writer.event(kind, message)
        self._ingest()

    def log(self, *lines: str) -> None:
        with (self.folder / run_files.LOG).open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    def _at(self, step: int, *, noise: float) -> tuple[float, float]:
        """(loss, accuracy) a run of this reach has after `step` steps."""
        learnt = 1 - math.exp(-3.2 * step / max(self.total_steps, 1))
        top = math.log(len(CLASSES))
        loss = top - (top - 1.05) * learnt * (0.55 + 0.75 * self.reach)
        accuracy = 0.025 + (self.reach + 0.06) * learnt
        if noise:
            loss = max(0.2, loss * (1 + noise * self.random.standard_normal()))
            accuracy = float(np.clip(accuracy + 0.09 * self.random.standard_normal(), 0, 1))
        return loss, accuracy

    def _validate(self, writer: spool.SpoolWriter, epoch: int) -> None:
        loss, accuracy = self._at(self.step, noise=0)
        right = int(np.clip(round((accuracy - 0.05) * 200 + self.random.integers(-4, 5)), 1, 200))
        values = {"valid/loss": loss + 0.22, "valid/accuracy": right / 200, "valid/macro_f1": 0.97 * right / 200}
        writer.metrics(self.step, {UPDATE + path: norm for path, norm in self.updates().items()}, epoch=epoch)
        writer.metrics(self.step, values, epoch=epoch, n=CLIPS["valid"])
        writer.event("checkpoint", f"Saved at step {self.step}.")
        self.log(
            f"epoch {epoch}/{self.run.config.training.max_epochs}  step {self.step}  train loss {loss:.3f}  "
            f"valid loss {loss + 0.22:.3f}  valid accuracy {right / 200:.3f} (n=200)"
        )

    def updates(self) -> dict[str, float]:
        """How far each target was moved by now: later layers farther, keys hardly."""
        learnt = 1 - math.exp(-3.2 * self.step / self.total_steps)
        found = {}
        for i, target in enumerate(self.run.config.lora.targets):
            layer = next((int(part) for part in target.path.split(".") if part.isdecimal()), 0)
            role = {"k_proj": 0.25, "q_proj": 0.5, "v_proj": 0.9, "o_proj": 1.1}.get(
                target.path.rpartition(".")[2], 0.8
            )
            found[target.path] = learnt * role * (0.02 + 0.015 * layer) * (1 + 0.1 * math.sin(5 * i))
        return found

    def _predictions(self, split: str) -> list[Prediction]:
        found = []
        test = _real_test_clips()
        for i in range(CLIPS[split]):
            label = CLASSES.index(test[i].label) if split == "test" else i % len(CLASSES)
            # Harder classes lie far from the start of the list; a mistake is a neighbour on the PAS sheet.
            right = self.random.random() < np.clip(self.reach + 0.35 * math.cos(label / 6), 0.02, 0.98)
            shift = 0 if right else int(self.random.choice([-2, -1, 1, 1, 2, 5]))
            predicted = (label + shift) % len(CLASSES)
            probability = float(self.random.uniform(0.3, 0.98))
            found.append(
                Prediction(
                    clip_id=test[i].clip_id if split == "test" else f"{split}-{i:04d}",
                    split=split, label=CLASSES[label], predicted=CLASSES[predicted],
                    probability=probability, label_probability=probability if right else (1 - probability) / 3,
                )
            )  # fmt: skip
        return found

    def _ingest(self) -> None:
        with Store.open(self.workspace) as store:
            batch = spool.read_batch(self.folder / run_files.SPOOL, self.taken)
            assert Ledger(store).ingest(self.run.id, batch)
        self.taken = batch.end


def queued(store: Store, count: int = 5) -> list[str]:
    """The ids of `count` runs that were queued now, in their order."""
    return [store.runs.enqueue(build({"seed": seed, "data": {"dataset": "micro"}})).id for seed in range(count)]


def queue_order(store: Store) -> list[str]:
    """The ids of the runs that wait, the next one first."""
    return [row.id for row in store.queue.waiting()]


def train_next(
    store: Store,
    *,
    reach: float = 0.5,
    epochs: int = 3,
    status: RunStatus = RunStatus.FINISHED,
    reason: str | None = None,
    slot: str = "cpu",
) -> Run:
    """Take the next queued run and play a minute of training in the store alone: validations, a test, an end.

    A status that is not over leaves it there, training.
    """
    started_at_ms = time.time_ns() // 1_000_000 - 60_000
    run = Ledger(store).claim(slot, "nonce")
    assert run is not None, "nothing is queued, or the slot is held"
    assert Ledger(store).mark_running(run.id, "nonce", started_at_ms=started_at_ms)
    points = [
        SpoolPoint("valid/accuracy", 10 * epoch, reach * (1 - 0.5**epoch), epoch, 200, epoch)
        for epoch in range(1, epochs + 1)
    ]
    if status is RunStatus.FINISHED:
        points.append(SpoolPoint("test/accuracy", 10 * epochs, reach, epochs, 200, epochs))
    assert Ledger(store).ingest(run.id, SpoolBatch(start=0, end=1, points=points))
    if status.is_over:
        assert Ledger(store).finish(run.id, status, reason, nonce="nonce")
    return store.runs.get(run.id) or run


@contextmanager
def no_supervisor(workspace: Workspace) -> Iterator[None]:
    """No supervisor works in this workspace meanwhile: it would see that nobody trains here, and call runs lost."""
    workspace.runs.mkdir(parents=True, exist_ok=True)
    with workspace.supervisor_lock.open("a+") as lock:
        deadline = time.monotonic() + 30
        while not _locked(lock):
            lock.seek(0)
            pid = lock.read().strip()  # who holds it signs it
            if pid:
                os.kill(int(pid), signal.SIGTERM)
            assert time.monotonic() < deadline, "the supervisor that is there does not leave"
            time.sleep(0.05)
        yield


def seed(workspace: Workspace, *, live: bool = True) -> dict[str, Run]:
    """A week of work. live=False leaves out the running and the queued run. Returns the runs by what they show."""
    now = time.time_ns() // 1_000_000
    hour = 3_600_000
    runs: dict[str, Run] = {}
    finished = [
        ("finished", config(seed=1), 0.60, 50),
        ("seed 2", config(seed=2), 0.57, 49),
        ("seed 3", config(seed=3), 0.62, 48),
        ("attention", config(seed=1, roles=ATTENTION, name="attention only"), 0.49, 30),
        ("random", config(seed=1, weights="random", name="control"), 0.36, 29),
        ("rank 16", config(seed=1, r=16, name="rank 16"), 0.63, 6),
    ]
    for label, run_config, reach, hours in finished:
        runs[label] = Training.begin(workspace, run_config, reach=reach, at_ms=now - hours * hour).finish()

    failed = Training.begin(workspace, config(seed=4, name="too fast", lr=0.5), reach=0.1, at_ms=now - 28 * hour)
    failed.steps(120, diverge_at=120)
    reason = "The loss became nan at step 120. Lower training.lr (now 0.5) or training.head_lr (now 0.002)."
    failed.log(
        "Traceback (most recent call last):",
        '  File "sousa_engine/trainer.py", line 46, in main',
        "    outcome = run(folder, run_config, device=arguments.device, stop=lambda: bool(stopping))",
        f"\x1b[31msousa_engine.core.errors.RunError\x1b[0m: {reason}",
    )
    runs["failed"] = failed.end(RunStatus.FAILED, reason)

    stopped = Training.begin(workspace, config(seed=5), reach=0.5, at_ms=now - 27 * hour)
    stopped.steps(160)
    stopped.event("checkpoint", "Saved at step 160 before stopping.")
    runs["stopped"] = stopped.end(RunStatus.STOPPED, "Stopped at step 160.")

    lost = Training.begin(workspace, config(seed=6), reach=0.5, at_ms=now - 26 * hour)
    lost.steps(60)
    runs["lost"] = lost.end(RunStatus.LOST, "The trainer vanished without a trace: its lock is free.")

    if live:
        # Started so long ago that its last step falls on now.
        running = Training.begin(workspace, config(seed=7, name="rank 8, again"), reach=0.6, at_ms=now - 100_000)
        running.steps(190)
        with Store.open(workspace) as store:
            runs["running"] = store.runs.get(running.run.id) or running.run
            runs["queued"] = store.runs.enqueue(config(seed=8), created_by="cli")
    return runs


def seed_sweep(
    workspace: Workspace,
    *,
    ranks: Sequence[int] = (4, 8, 16),
    rates: Sequence[float] = (5e-4, 2e-3, 8e-3),
    seeds: Sequence[int] = (1, 2),
    pruned: int = 0,
) -> str:
    """A sweep of ranks by learning rates that is over; the last `pruned` trials were given up. Returns its id."""
    asked = [(r, lr) for r in ranks for lr in rates]
    runs = [
        SweepRun(
            config(seed=seed, r=r, lr=lr, max_epochs=3, name=f"r {r} · lr {lr:g}"),
            trial,
            {"lora.r": r, "training.lr": lr},
        )
        for trial, (r, lr) in enumerate(asked)
        for seed in seeds
    ]
    axes = [{"field": "lora.r", "values": list(ranks)}, {"field": "training.lr", "values": list(rates)}]
    spec = {"name": "rank and rate", "axes": axes, "seeds": list(seeds)}
    with Store.open(workspace) as store:
        sweep = store.sweeps.add("rank and rate", spec, runs, created_by="test")
        queued = store.sweeps.runs(sweep.id)
    for run in queued:
        rank, rate = run.config.lora.r, run.config.training.lr
        reach = 0.6 - 0.15 * abs(math.log10(rate / 2e-3)) + 0.02 * math.log2(rank / 8)
        training = Training.take(workspace, run, reach=reach)
        if run.trial is not None and run.trial >= len(asked) - pruned:
            training.steps(40)
            with Store.open(workspace) as store:
                assert Ledger(store).prune(run.id, 40, "Pruned at step 40: others were ahead.")
            training.end(RunStatus.STOPPED, None)
        else:
            training.finish()
    with Store.open(workspace) as store:
        store.sweeps.set_status(sweep.id, SweepStatus.FINISHED, leaving=[SweepStatus.RUNNING])
    return sweep.id


def old_database(workspace: Workspace, version: int) -> migrations.Database:
    """The open runs.db of a new workspace, made by a program that knew `version` migrations."""
    before = migrations.Migrations("sousa_engine")
    for migration in migrations.history.pending(migrations.Database(memory=True))[:version]:
        before(name=migration.name)(migration.fn)
    workspace.runs.mkdir(parents=True)
    old = migrations.Database(workspace.db)
    migrations.migrate(old, workspace, before, latest=version)
    return old


def begin_at_once(program: str, workspace: Workspace, *, timeout_s: float, count: int = 2) -> None:
    """Run a Python program, which says "ready" and waits for a line, in `count` processes at once; all must succeed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", program, str(workspace.root)]
    processes = [subprocess.Popen(command, cwd=PROJECT_ROOT, **pipes) for _ in range(count)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, stderr = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, stderr


@contextmanager
def killed_before_change(program: str, *arguments: object) -> Iterator[Callable[[int], int]]:
    """Run a Python program, with sys.argv[1:] as `arguments`, as often as asked: each time a SIGKILL comes before its
    change of that number (0 is the first) of names in file systems: a link, a rename, a removal. Gives how it ended,
    0 or -9. What comes before `watched()` in it, imports above all, happens once."""
    command = [sys.executable, "-c", _WATCHED + program, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=PROJECT_ROOT, **pipes) as process:

        def run(number: int) -> int:
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


_WATCHED = """
import os, signal, sys
def watch(event, arguments):
    global left
    if event in ("os.link", "os.remove", "os.rename"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
def watched():
    global left
    for line in sys.stdin:
        left = int(line)
        if not (child := os.fork()):
            sys.addaudithook(watch)
            sys.stdin, sys.stdout = open(os.devnull), sys.stderr
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()
"""


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _scores(predictions: list[Prediction]) -> tuple[float, float]:
    """(accuracy, macro-F1 over the labels present)."""
    right = sum(p.label == p.predicted for p in predictions)
    scores = []
    for label in {p.label for p in predictions}:
        hit = sum(p.label == p.predicted == label for p in predictions)
        seen = sum((p.label == label) + (p.predicted == label) for p in predictions)
        scores.append(2 * hit / seen)
    return right / len(predictions), sum(scores) / len(scores)
