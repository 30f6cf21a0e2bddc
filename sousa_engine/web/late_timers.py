"""Skip a fragment's timer that fires while another page opens.

The browser stops the timers of a page when it learns of the next one. If Python opens the next page (st.switch_page),
a timer can fire before that. Streamlit 1.67 checks whether the fragment exists when the message arrives, that is while
the next page runs, but not again when it handles the message. By then the next page has replaced all fragments, so
Streamlit reports a run of the previous page, which wipes the new page from the browser. This module checks again.
"""

from __future__ import annotations

from functools import wraps

from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData


def pass_over() -> None:
    """Make script runners skip runs whose fragments are all gone. Call this once, at the start."""
    run_script = ScriptRunner._run_script

    @wraps(run_script)
    def unless_gone(self: ScriptRunner, rerun_data: RerunData) -> None:
        fragments = rerun_data.fragment_id_queue
        if not fragments or any(map(self._fragment_storage.contains, fragments)):
            run_script(self, rerun_data)

    ScriptRunner._run_script = unless_gone
