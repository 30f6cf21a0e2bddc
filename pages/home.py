"""Studio: what this is, three steps, the newest runs."""

import streamlit as st

st.title("SOUSA engine")
st.write("Fine-tune audio backbones with LoRA, on this machine: tick the modules, launch, watch, compare.")
