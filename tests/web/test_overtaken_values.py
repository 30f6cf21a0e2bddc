"""A value that is typed right before a change of page: Streamlit's own queue of requests, asked directly."""

import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.scriptrunner import RerunData
from streamlit.runtime.scriptrunner_utils import script_requests
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests

from sousa_engine.web import overtaken_values


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
    monkeypatch.setattr(script_requests, "_coalesce_widget_states", script_requests._coalesce_widget_states)
    overtaken_values.keep()


@pytest.mark.usefixtures("kept")
def test_a_typed_value_outlives_the_change_of_page_that_overtakes_it():
    assert merged(states(seeds="4 5", shared="a"), states(shared="b")) == {"seeds": "4 5", "shared": "b"}


@pytest.mark.usefixtures("kept")
def test_the_newest_value_wins_however_many_requests_wait():
    assert merged(states(seeds="4"), states(), states(seeds="4 5"), states()) == {"seeds": "4 5"}


def test_without_that_streamlit_still_loses_it():
    """Once this fails, overtaken_values.py has become needless."""
    assert merged(states(seeds="4 5", shared="a"), states(shared="b")) == {"shared": "b"}
