"""Fixtures for pages that are visited without a browser."""

import pytest
from seeding import seed
from streamlit.testing.v1 import AppTest
from visiting import checked

from sousa_engine.runs import ensure
from sousa_engine.workspace import PROJECT_ROOT, Workspace

PAGES = PROJECT_ROOT / "pages"


@pytest.fixture
def ensured():
    """The workspaces that a page started a supervisor for; no supervisor really starts."""
    return []


@pytest.fixture
def visit(workspace, monkeypatch, ensured):
    """visit("runs"), visit("run", id=...): the page after its first run, without an exception."""
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    monkeypatch.setattr(ensure, "ensure", ensured.append)

    def open_page(name, **query):
        app = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=180)
        for key, value in query.items():
            app.query_params[key] = value
        if name != "home":  # which opens by itself
            app.switch_page(str(PAGES / f"{name}.py"))
        return checked(app.run())

    return open_page


@pytest.fixture(scope="session")
def week(tmp_path_factory):
    """A workspace with a week of work and its runs, shared by tests that only read it."""
    workspace = Workspace(root=tmp_path_factory.mktemp("week"))
    return workspace, seed(workspace)


@pytest.fixture
def visit_week(week, monkeypatch, visit):
    """As `visit`, in the workspace of `week`."""
    monkeypatch.setenv("SOUSA_WORKSPACE", str(week[0].root))
    return visit
