"""Fixtures that more than one test file needs."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch: workers beside each other, one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.dont_write_bytecode:  # cache compiled modules all the same: else each process under test compiles them again
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False

import pytest

from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    from sousa_engine.store import Store


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, since browsers and trainings are waited for; few enough for their memory."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 5) + 1


def pytest_collection() -> None:
    """While everything is imported, a collector of garbage finds none."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file of the browser's, then another, and so on, the others by turns from each folder. Workers that all drive a
    browser would wait for each other; and a browser's file takes minutes, in which at the end the others would be idle.
    """
    folders: dict[Path, list[Path]] = {}
    for item in items:
        of_folder = folders.setdefault(item.path.parent, [])
        if item.path not in of_folder:
            of_folder.append(item.path)
    browser = [path for folder, paths in folders.items() if folder.name == "browser" for path in paths]
    place = {path: 2 * number for number, path in enumerate(browser)}
    turns = sorted(
        (index, str(path)) for paths in folders.values() for index, path in enumerate(paths) if path not in place
    )
    place |= {Path(path): 2 * number + 1 for number, (_, path) in enumerate(turns)}
    items.sort(key=lambda item: place[item.path])


def pytest_collection_finish() -> None:
    """What was imported stays, so no collector need look at it; nor need each AppTest read anew what is installed."""
    gc.freeze()
    gc.enable()
    if "streamlit" in sys.modules:
        from streamlit.components.v2 import manifest_scanner

        manifest_scanner.scan_component_manifests = functools.cache(manifest_scanner.scan_component_manifests)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test draws the same random numbers whatever ran before it; so do the fixtures that it is the first to need."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """An empty workspace of its own for each test."""
    return Workspace(root=tmp_path)


@pytest.fixture
def store(workspace) -> Iterator[Store]:
    """The store of `workspace`, open."""
    from sousa_engine.store import Store

    with Store.open(workspace) as opened:
        yield opened


@pytest.fixture
def ensured(monkeypatch) -> list[Workspace]:
    """The workspaces that a supervisor was started for; none really starts."""
    from sousa_engine.runs import ensure

    found: list[Workspace] = []
    monkeypatch.setattr(ensure, "ensure", lambda workspace: bool(found.append(workspace)) or True)
    return found


@pytest.fixture(scope="session")
def _week(tmp_path_factory):
    from seeding import seed

    folder = tmp_path_factory.mktemp("week")
    return folder, seed(Workspace(root=folder), live=False)


@pytest.fixture
def week_of_work(workspace, _week):
    """In `workspace`, what seeding.seed makes without live runs; returned as there. A copy: seeding takes seconds."""
    folder, runs = _week
    shutil.copytree(folder, workspace.root, dirs_exist_ok=True)
    return dict(runs)


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """Every disk says that nothing is left on it."""
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 0))
