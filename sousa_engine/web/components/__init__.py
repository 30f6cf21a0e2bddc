"""Components of our own (streamlit.components.v2): HTML, CSS and JS files beside their Python, no build step."""
