"""The studio's terminal: one line for what the engine has a sentence for, a traceback for everything else."""

from __future__ import annotations

import io
import logging

import pytest
from streamlit.error_util import handle_user_script_exception
from streamlit.runtime.scriptrunner import StopException

from sousa_engine.core.errors import UserError, WorkspaceError
from sousa_engine.web import terminal


@pytest.fixture
def said():
    """said(error) -> what the terminal shows once Streamlit logs it, as it does for pages, fragments and callbacks."""
    logger, only = logging.getLogger(terminal.LOGGER), terminal.OneLine(lambda: said.now_s)
    paper = io.StringIO()
    handler = logging.StreamHandler(paper)
    logger.addFilter(only)
    logger.addHandler(handler)

    def said(error: Exception, tell=lambda error: True) -> str:
        paper.seek(0)
        paper.truncate()
        try:
            raise error
        except Exception as caught:
            handle_user_script_exception(caught, tell)
        return paper.getvalue()

    said.now_s = 0.0
    yield said
    logger.removeFilter(only)
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def without_rich():
    from streamlit import config

    before = config.get_option("logger.enableRich")
    config.set_option("logger.enableRich", False)  # as .streamlit/config.toml says
    yield
    config.set_option("logger.enableRich", before)


@pytest.mark.parametrize("error", [WorkspaceError("runs.db is garbage.\nMend it."), UserError("lr = -1 is no rate.")])
def test_a_known_error_is_one_line_once_however_often_pages_meet_it(said, error):
    first = said(error)
    assert " ".join(str(error).split()) in first and "Traceback" not in first and first.count("\n") == 1
    for said.now_s in range(2, 5000, 2):
        assert said(error) == ""


def test_another_error_and_one_that_comes_back_are_said(said):
    assert said(WorkspaceError("a")) and said(WorkspaceError("b"))
    said.now_s = terminal.QUIET_S
    assert said(WorkspaceError("a"))


def test_an_unexpected_error_keeps_its_traceback_every_time(said):
    for _ in range(2):
        text = said(ValueError("a bug"))
        assert "Traceback" in text and "ValueError: a bug" in text


def test_a_bug_while_a_known_error_is_shown_keeps_its_traceback(said):
    def broken(error):
        raise KeyError("icon")

    assert "KeyError: 'icon'" in said(WorkspaceError("a"), broken)


def test_a_tab_that_is_closed_while_a_known_error_is_told_is_no_news(said):
    def closed(error):
        raise StopException

    said(WorkspaceError("a"))
    assert said(WorkspaceError("a"), closed) == ""
