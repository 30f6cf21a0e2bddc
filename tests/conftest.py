"""Fixtures that more than one test file needs."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from sousa_engine.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """An empty workspace of its own for each test."""
    return Workspace(root=tmp_path)


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """Every disk says that nothing is left on it."""
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 0))
