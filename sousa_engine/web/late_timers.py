"""A fragment's timer that fires while another page is being opened must not run there.

The browser stops the timers of a page when it hears of the next one. Where Python opens that (st.switch_page), a timer
can fire before. Streamlit 1.67 asks whether the fragment still exists when such a message arrives, which is while the
next page runs, and not once more when its turn comes, when the next page has replaced all fragments: it then tells the
browser of a run of the page before, which wipes the page that was just opened. Here it asks once more.
"""

from __future__ import annotations

from functools import wraps

from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData


def pass_over() -> None:
    """Have script runners leave out a run of nothing but fragments that are gone. Call it once, at the start."""
    run_script = ScriptRunner._run_script

    @wraps(run_script)
    def unless_gone(self: ScriptRunner, rerun_data: RerunData) -> None:
        fragments = rerun_data.fragment_id_queue
        if not fragments or any(map(self._fragment_storage.contains, fragments)):
            run_script(self, rerun_data)

    ScriptRunner._run_script = unless_gone
