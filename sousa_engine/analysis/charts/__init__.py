"""One chart per file: x_info(...) -> NamedTuple with the numbers, x_figure(info) -> plotly Figure. No streamlit."""
