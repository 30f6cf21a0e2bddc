"""The part of the engine that knows Streamlit: router, JSON routes, components. Pages stand in the top-level pages/."""

import streamlit as st

from sousa_engine.core.errors import SousaError, UserError


def tell(error: Exception) -> bool:
    """Show a mistake the engine has a sentence for; False for anything else: that is a bug and keeps its traceback."""
    if not isinstance(error, SousaError):
        return False
    from sousa_engine.web import parts  # here: the JSON routes have no use for what parts imports

    st.error(parts.plain(str(error)), icon=":material/error:")
    if not isinstance(error, UserError):  # not what somebody typed, but this machine
        parts.doctor_link()
    return True
