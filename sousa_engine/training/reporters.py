"""Where a trainer tells what happens: the run's spool, and Weights & Biases as well if the config asks for it."""

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
    """training.loop.Reporter, and what the trainer itself has to say."""

    def metrics(
        self, step: int, values: Mapping[str, float], epoch: int | None = None, n: int | None = None
    ) -> None: ...
    def progress(self, progress: Progress) -> None: ...
    def event(self, kind: str, message: str) -> None: ...
    def facts(self, facts: Mapping[str, Any]) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


def open_reporter(folder: Path, run_config: RunConfig) -> RunReporter:
    """Raises PreflightError when W&B is asked for and cannot start."""
    if run_config.wandb.mode == "disabled":
        return SpoolWriter(folder / run_files.SPOOL)
    return _WandbReporter(folder, run_config)


def wandb_missing(mode: str) -> str:
    return f"wandb.mode={mode} needs the optional package wandb: `.venv/bin/pip install wandb`."


class _WandbReporter:
    """Writes the spool first, then the same to W&B. offline: a directory in the run's folder for `wandb sync`."""

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
                resume="allow",  # a run that was stopped goes on as the same one
                config=run_config.model_dump(mode="json"),
            )
        except Exception as error:  # W&B raises errors of its own, of its server and of the network
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
