"""Keep a typed value, and a tap on a link, when the two overtake each other.

A link that is tapped while a field has the focus sends two messages: the typed value and the next page. Streamlit 1.67
handles them one by one, and on a busy machine three things go wrong:

- The page arrives while the value waits. Streamlit merges the two and keeps only values that the newer one mentions.
- The page arrives when the run with the value has begun but has not read it. Streamlit drops the value with the run.
- The value arrives last and names the page that was left. Streamlit goes back there, so the tap has no effect.

This module keeps the value in all three cases and goes to the page that was tapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps

from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.scriptrunner_utils import script_requests
from streamlit.runtime.state.safe_session_state import SafeSessionState

_NAVIGATION = "_sousa_navigation"  # an attribute of a session


@dataclass(frozen=True, kw_only=True)
class _Navigation:
    """The last change of page. left, asked: hashes of pages. shared: ids of the fields that both pages show."""

    left: str = ""
    asked: str = ""
    shared: frozenset[str] = frozenset()


def keep() -> None:
    """Patch Streamlit's sessions. Call this once, at the start."""
    script_requests._coalesce_widget_states = _merging_all(script_requests._coalesce_widget_states)
    SafeSessionState.on_script_will_rerun = _applying(SafeSessionState.on_script_will_rerun)
    AppSession.request_rerun = _staying(AppSession.request_rerun)
    AppSession._create_new_session_message = _noticing(AppSession._create_new_session_message)


def _merging_all(merge):
    """Merged requests keep the values that only the older one has."""

    @wraps(merge)
    def merge_all(old_states: WidgetStates | None, new_states: WidgetStates | None) -> WidgetStates | None:
        merged = merge(old_states, new_states)
        if old_states and new_states and merged:
            mentioned = {state.id for state in merged.widgets}
            merged.widgets.extend(state for state in old_states.widgets if state.id not in mentioned)
        return merged

    return merge_all


def _applying(will_rerun):
    """A run that a newer request interrupts has taken its values over first.

    Streamlit asks for newer requests both before and after this, and drops the values if it finds one before.
    """

    @wraps(will_rerun)
    def apply(self: SafeSessionState, *values, **named) -> None:
        with self._lock:
            self._state.on_script_will_rerun(*values, **named)

    return apply


def _staying(request_rerun):
    """A value of the page that was just left does not lead back there."""

    @wraps(request_rerun)
    def stay(self: AppSession, client_state: ClientState | None) -> None:
        if client_state is not None:
            last: _Navigation = getattr(self, _NAVIGATION, _Navigation())
            page = client_state.page_script_hash
            if page and page == last.left and _is_value_of_a_field(client_state, last.shared):
                client_state.page_script_hash = last.asked
                client_state.ClearField("fragment_id")
            elif page != last.asked:
                shared = frozenset(state.id for state in client_state.widget_states.widgets)
                setattr(self, _NAVIGATION, _Navigation(left=last.asked, asked=page, shared=shared))
        request_rerun(self, client_state)

    return stay


def _noticing(create_message):
    """A change of page that Python asked for (st.switch_page) counts like one that the browser asked for."""

    @wraps(create_message)
    def notice(self: AppSession, page_script_hash: str, *more, **named):
        last: _Navigation = getattr(self, _NAVIGATION, _Navigation())
        if page_script_hash != last.asked:
            setattr(self, _NAVIGATION, _Navigation(left=last.asked, asked=page_script_hash))
        return create_message(self, page_script_hash, *more, **named)

    return notice


def _is_value_of_a_field(client_state: ClientState, shared: frozenset[str]) -> bool:
    """Whether the browser sent this for a field of one page, and not for a page, a button, a timer or its Back."""
    if client_state.is_auto_rerun or client_state.is_history_navigation:
        return False
    states = client_state.widget_states.widgets
    is_pressed = any(map(script_requests._has_active_trigger_value, states))
    return not is_pressed and any(state.id not in shared for state in states)
