"""The part of the engine that knows Streamlit: router, JSON routes, components. Pages stand in the top-level pages/."""
