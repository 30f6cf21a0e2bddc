"""Where a trainer reports to: the run's spool, and Weights & Biases as well if the config asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import PreflightError
from sousa_engine.core.records import Progress
from sousa_engine.workspace import run_files
from sousa_engine.workspace.spool import SpoolWriter


class RunReporter(Protocol):
    """training.loop.Reporter, plus what the trainer itself reports."""

    def metrics(
        self, step: int, values: Mapping[str, float], epoch: int | None = None, n: int | None = None
    ) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def event(self, kind: str, message: str) -> None: ...
    def facts(self, facts: Mapping[str, Any]) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


def open_reporter(folder: Path, run_config: RunConfig) -> RunReporter:
    """Raises PreflightError if W&B is asked for and cannot start."""
    if run_config.wandb.mode == "disabled":
        return SpoolWriter(folder / run_files.SPOOL)
    return _WandbReporter(folder, run_config)


def log_event(reporter: RunReporter, kind: str, message: str) -> None:
    """Report an event, and print it to the run's log as well."""
    reporter.event(kind, message)
    print(f"{kind}: {message}", flush=True)


def log_damaged(reporter: RunReporter, sentence: str, step: int) -> None:
    """Report a checkpoint that had to be skipped, and the step of the one that is used."""
    log_event(reporter, "checkpoint damaged", f"{sentence} The previous one is used instead: step {step}.")


def wandb_missing(mode: str) -> str:
    return f"wandb.mode={mode} needs the optional package wandb: `.venv/bin/pip install wandb`."


class _WandbReporter:
    """Writes to the spool first, then the same to W&B. Offline, that is a folder for `wandb sync`."""

    def __init__(self, folder: Path, run_config: RunConfig):
        settings = run_config.wandb
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise PreflightError(wandb_missing(settings.mode)) from None
        self._spool = SpoolWriter(folder / run_files.SPOOL)
        try:
            self._run = wandb.init(
                project=settings.project,
                mode=settings.mode,
                dir=str(folder),
                name=run_config.title,
                id=folder.name,
                resume="allow",  # a resumed run continues the same W&B run
                config=run_config.model_dump(mode="json"),
            )
        except Exception as error:  # its own errors, the server's and the network's
            self._spool.close()
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise PreflightError(
                f"wandb.mode={settings.mode} could not start: {first} Use wandb.mode=offline, or log in: `wandb login`."
            ) from error

    def metrics(self, step: int, values: Mapping[str, float], epoch: int | None = None, n: int | None = None) -> None:
        self._spool.metrics(step, values, epoch=epoch, n=n)
        self._run.log({**values, "epoch": epoch}, step=step)

    def progress(self, progress: Progress) -> None:
        self._spool.progress(progress)

    def event(self, kind: str, message: str) -> None:
        self._spool.event(kind, message)

    def facts(self, facts: Mapping[str, Any]) -> None:
        self._spool.facts(facts)
        self._run.summary.update(dict(facts))

    def sync(self) -> None:
        self._spool.sync()

    def close(self) -> None:
        self._spool.close()
        self._run.finish()
