"""A timer of a page that fires while the next one opens: the real script runner of Streamlit, stepped by hand."""

import sys
import threading
from types import ModuleType
from unittest.mock import MagicMock

import pytest
from streamlit.runtime import Runtime
from streamlit.runtime.pages_manager import PagesManager
from streamlit.runtime.scriptrunner import RerunData, ScriptRunner, ScriptRunnerEvent
from streamlit.runtime.scriptrunner.script_cache import ScriptCache
from streamlit.runtime.state import SafeSessionState, SessionState
from streamlit.testing.v1.local_script_runner import LocalScriptRunner

from sousa_engine.web import late_timers

APP = """
import streamlit as st
import stepped

def first():
    st.fragment(lambda: st.write("ticks"), run_every=2)()
    stepped.at("first")

def second():
    st.title("Second")
    stepped.at("second")

st.navigation([st.Page(first, default=True), st.Page(second)], position="hidden").run()
"""
DEADLINE_S = 60


@pytest.fixture
def stepped(monkeypatch):
    """A page waits in stepped.at(name) until stepped.go(name); stepped.there(name) waits for the page."""
    arrived, may_go = ({name: threading.Event() for name in ("first", "second")} for _ in range(2))
    module = ModuleType("stepped")
    module.there = lambda name: arrived[name].wait(DEADLINE_S)
    module.go = lambda name: may_go[name].set()

    def at(name):
        arrived[name].set()
        assert may_go[name].wait(DEADLINE_S)

    module.at = at
    monkeypatch.setitem(sys.modules, "stepped", module)
    return module


def pages_run(tmp_path, stepped) -> list[str]:
    """Which pages the browser hears of, by name, where a timer of the first fires while the second runs."""
    script = tmp_path / "main.py"
    script.write_text(APP)
    pages = PagesManager(str(script), ScriptCache(), setup_watcher=False)
    runner = LocalScriptRunner(str(script), SafeSessionState(SessionState(), lambda: None), pages)
    runner.request_rerun(RerunData())
    runner.start()
    assert stepped.there("first")
    (fragment,) = runner._fragment_storage._fragments
    by_hash = {page["page_script_hash"]: page["page_name"] for page in pages.get_pages().values()}
    hashes = {name: page_hash for page_hash, name in by_hash.items()}
    runner.request_rerun(RerunData(page_script_hash=hashes["second"]))
    stepped.go("first")
    assert stepped.there("second")
    late = RerunData(fragment_id=fragment, page_script_hash=hashes["first"], is_auto_rerun=True)
    assert runner.request_rerun(late)
    stepped.go("second")
    runner.join()
    started = [
        data["page_script_hash"]
        for event, data in zip(runner.events, runner.event_data, strict=True)
        if event is ScriptRunnerEvent.SCRIPT_STARTED
    ]
    return [by_hash.get(page_hash, "first") for page_hash in started]


def test_a_timer_that_fires_while_the_next_page_opens_is_not_run_on_it(tmp_path, stepped, monkeypatch):
    monkeypatch.setattr(Runtime, "_instance", MagicMock())
    monkeypatch.setattr(ScriptRunner, "_run_script", ScriptRunner._run_script)  # put back afterwards
    late_timers.pass_over()
    assert pages_run(tmp_path, stepped) == ["first", "second"]


def test_without_that_streamlit_still_runs_it(tmp_path, stepped, monkeypatch):
    """Once this fails, late_timers.py has become needless."""
    monkeypatch.setattr(Runtime, "_instance", MagicMock())
    assert pages_run(tmp_path, stepped) == ["first", "second", "first"]
