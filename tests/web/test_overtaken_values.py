"""A value that is typed right before a change of page: Streamlit's own queue, session and state, asked directly."""

import contextlib
from types import SimpleNamespace

import pytest
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.scriptrunner import RerunData
from streamlit.runtime.scriptrunner_utils import script_requests
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests
from streamlit.runtime.state.safe_session_state import SafeSessionState
from streamlit.runtime.state.session_state import SessionState

from sousa_engine.web import overtaken_values

PATCHED = [
    (script_requests, "_coalesce_widget_states"),
    (SafeSessionState, "on_script_will_rerun"),
    (AppSession, "request_rerun"),
    (AppSession, "_create_new_session_message"),
]


def states(**values: str) -> WidgetStates:
    found = WidgetStates()
    for name, value in values.items():
        found.widgets.add(id=name, string_value=value)
    return found


def merged(*waiting: WidgetStates) -> dict[str, str]:
    """What the script is run with, where all these requests came before it was ready."""
    requests = ScriptRequests()
    for found in waiting:
        requests.request_rerun(RerunData(widget_states=found))
    request = requests.on_scriptrunner_ready()
    return {state.id: state.string_value for state in request.rerun_data.widget_states.widgets}


@pytest.fixture
def kept(monkeypatch):
    for owner, name in PATCHED:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    overtaken_values.keep()


@pytest.mark.usefixtures("kept")
def test_a_typed_value_outlives_the_change_of_page_that_overtakes_it():
    assert merged(states(seeds="4 5", shared="a"), states(shared="b")) == {"seeds": "4 5", "shared": "b"}


@pytest.mark.usefixtures("kept")
def test_the_newest_value_wins_however_many_requests_wait():
    assert merged(states(seeds="4"), states(), states(seeds="4 5"), states()) == {"seeds": "4 5"}


def test_without_that_streamlit_still_loses_it():
    """Once this fails, that part of overtaken_values.py has become needless."""
    assert merged(states(seeds="4 5", shared="a"), states(shared="b")) == {"shared": "b"}


def taken_over(*, newer_waits: bool) -> list[str]:
    """The values that a session takes over where a newer request waits, which interrupts the run wherever it looks."""

    class Interrupted(Exception):
        pass

    def look():
        if newer_waits:
            raise Interrupted

    inner = SessionState()
    with contextlib.suppress(Interrupted):
        SafeSessionState(inner, look).on_script_will_rerun(states(rate="0.004"))
    return list(inner._new_widget_state.states)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("newer_waits", [False, True])
def test_an_interrupted_run_takes_its_values_over_first(newer_waits):
    assert taken_over(newer_waits=newer_waits) == ["rate"]


def test_without_that_streamlit_still_drops_them():
    """Once this fails, that part of overtaken_values.py has become needless."""
    assert taken_over(newer_waits=True) == []


class Session:
    """The pages that a session runs. Fields of Launch are "rate" and "epochs"; all pages share "theme"."""

    def __init__(self, monkeypatch):
        self.ran: list[str] = []
        self.values: list[dict[str, str]] = []
        self.session = SimpleNamespace()
        for owner, name in PATCHED[:2]:
            monkeypatch.setattr(owner, name, getattr(owner, name))
        monkeypatch.setattr(AppSession, "request_rerun", self._run)
        monkeypatch.setattr(AppSession, "_create_new_session_message", lambda session, page: page)
        overtaken_values.keep()

    def _run(self, session, client_state):
        self.ran.append(client_state.page_script_hash)
        self.values.append({state.id: state.string_value for state in client_state.widget_states.widgets})

    def send(self, page, *, button=False, values=(), **more):
        message = ClientState(page_script_hash=page, **more)
        message.widget_states.CopyFrom(states(theme="dark", **dict(values)))
        if button:
            message.widget_states.widgets.add(id="start", trigger_value=True)
        AppSession.request_rerun(self.session, message)

    def server_opens(self, page):
        AppSession._create_new_session_message(self.session, page)


@pytest.fixture
def session(monkeypatch):
    return Session(monkeypatch)


def test_a_value_of_the_page_that_was_left_does_not_lead_back_there(session):
    session.send("launch")
    session.send("data")
    session.send("launch", values={"rate": "0.004"}, fragment_id="gone")
    assert session.ran == ["launch", "data", "data"]
    assert session.values[-1] == {"theme": "dark", "rate": "0.004"}


@pytest.mark.parametrize("how", [{}, {"is_history_navigation": True, "values": {"rate": "0.004"}}])
def test_a_link_or_back_leads_to_the_page_that_was_left(session, how):
    session.send("launch")
    session.send("data")
    session.send("launch", **how)
    session.send("launch", values={"rate": "0.004"})
    assert session.ran == ["launch", "data", "launch", "launch"]


def test_a_button_of_the_page_that_was_left_still_counts(session):
    session.send("launch")
    session.send("data")
    session.send("launch", button=True, values={"rate": "0.004"})
    assert session.ran[-1] == "launch"


def test_a_page_that_python_opened_takes_values(session):
    session.send("launch")
    session.send("run")
    session.server_opens("run")
    session.server_opens("launch")  # Edit and launch
    session.send("launch", values={"rate": "0.004"})
    assert session.ran[-1] == "launch"
    session.send("run", values={"note": "late"})
    assert session.ran[-1] == "launch"
