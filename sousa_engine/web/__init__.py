"""Everything that knows Streamlit: router, JSON routes, components. The pages are in the top-level folder pages/."""

import streamlit as st

from sousa_engine.core.errors import SousaError, UserError

__all__ = [
    "addresses",
    "baselines_view",
    "clip_view",
    "compare_baselines",
    "compare_parts",
    "compare_sweep",
    "components",
    "drafts",
    "fields",
    "guard",
    "handover",
    "kept",
    "late_timers",
    "layers_view",
    "manage",
    "overtaken_values",
    "parts",
    "reading_view",
    "report_view",
    "routes",
    "scan_view",
    "sweep_form",
    "sweep_marks",
    "sweep_view",
    "tell",
    "terminal",
    "titles",
    "weights_view",
]


def tell(error: Exception) -> bool:
    """Show an error of the engine as a sentence. Returns False for any other: a bug, which keeps its traceback."""
    if not isinstance(error, SousaError):
        return False
    from sousa_engine.web import parts  # here, because the JSON routes do not need what parts imports

    st.error(parts.plain(str(error)), icon=":material/error:")
    if not isinstance(error, UserError):  # a problem of the machine, not of the user's input
        parts.doctor_link()
    return True
