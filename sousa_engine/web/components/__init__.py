"""Custom components (streamlit.components.v2): HTML, CSS and JS files next to their Python, no build step."""
