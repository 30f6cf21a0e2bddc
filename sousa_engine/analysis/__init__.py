"""Records turned into small typed tables: curves, comparison, confusion, significance. No torch, SQL or streamlit."""
