"""Reports reach the spool, and W&B too where it was asked for and is installed."""

from __future__ import annotations

import sys

import pytest

from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import PreflightError
from sousa_engine.training import reporters
from sousa_engine.workspace import run_files
from sousa_engine.workspace.spool import read_batch


def report(folder, mode):
    reporter = reporters.open_reporter(folder, RunConfig.model_validate({"wandb": {"mode": mode}}))
    for step in (1, 2, 3):
        reporter.metrics(step, {"train/loss": 1 / step}, epoch=1, n=16)
    reporter.facts({"versions": {"python": "3"}})
    reporter.close()


def points(folder):
    return [(p.metric, p.step) for p in read_batch(folder / run_files.SPOOL, 0).points]


def test_disabled_writes_the_spool_alone(tmp_path):
    report(tmp_path, "disabled")
    assert points(tmp_path) == [("train/loss", step) for step in (1, 2, 3)]
    assert [path.name for path in tmp_path.iterdir()] == [run_files.SPOOL]


def test_asked_for_and_not_installed_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PreflightError, match="pip install wandb"):
        report(tmp_path, "offline")


def test_offline_writes_a_directory_that_wandb_can_sync(tmp_path):
    pytest.importorskip("wandb", reason="wandb is an optional extra")
    report(tmp_path, "offline")
    assert points(tmp_path) == [("train/loss", step) for step in (1, 2, 3)]
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
