"""Fixtures that more than one test file needs."""

from __future__ import annotations

import pytest

from sousa_engine.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """An empty workspace of its own for each test."""
    return Workspace(root=tmp_path)
