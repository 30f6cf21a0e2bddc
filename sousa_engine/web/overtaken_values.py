"""Keep a typed value that a change of page overtakes.

A link that is tapped while a field has the focus sends two messages: the typed value, then the next page with the
states of the elements that both pages share. If the first message still waits when the second arrives, Streamlit 1.67
merges the two and keeps only the values that the second one mentions, so what was typed is lost. This module keeps it.
"""

from __future__ import annotations

from functools import wraps

from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.scriptrunner_utils import script_requests


def keep() -> None:
    """Make merged requests keep the values that only the older one has. Call this once, at the start."""
    merge = script_requests._coalesce_widget_states

    @wraps(merge)
    def merge_all(old_states: WidgetStates | None, new_states: WidgetStates | None) -> WidgetStates | None:
        merged = merge(old_states, new_states)
        if old_states and new_states and merged:
            mentioned = {state.id for state in merged.widgets}
            merged.widgets.extend(state for state in old_states.widgets if state.id not in mentioned)
        return merged

    script_requests._coalesce_widget_states = merge_all
