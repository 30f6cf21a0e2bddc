"""The router: which pages exist, under which address, and what a visitor sees when the engine says no."""

from pathlib import Path

import streamlit as st

from sousa_engine.errors import SousaError
from sousa_engine.workspace import PROJECT_ROOT

ASSETS = Path(__file__).resolve().parent / "assets"


def page(file: str, title: str, icon: str, help: str, **options):
    return st.Page(PROJECT_ROOT / "pages" / file, title=title, icon=f":material/{icon}:", help=help, **options)


PAGES = [
    ("home.py", "Studio", "home", "What this is, and your newest runs.", {"default": True}),
    ("backbones.py", "Backbones", "account_tree", "Look into a network and tick the modules that get LoRA.", {}),
    ("data.py", "Data", "library_music", "Classes, splits and clips of a data set; listen and look.", {}),
    ("launch.py", "Launch", "rocket_launch", "Choose everything a training needs, check it, start it.", {}),
    ("runs.py", "Runs", "monitoring", "All runs: waiting, running and over.", {}),
    ("compare.py", "Compare", "compare_arrows", "Two or more runs side by side.", {}),
    ("run.py", "Run", "show_chart", "One run: curves, progress, log and settings.", {"visibility": "hidden"}),
]

pages = [
    page(file, title, icon, help, **({} if options.get("default") else {"url_path": Path(file).stem}), **options)
    for file, title, icon, help, options in PAGES
    if (PROJECT_ROOT / "pages" / file).exists()
]
st.set_page_config(page_icon=str(ASSETS / "favicon.svg"), layout="wide")
current = st.navigation(pages, position="top")
st.set_page_config(page_title=f"{current.title} · SOUSA")
st.logo(str(ASSETS / "logo.svg"), size="medium")

try:
    current.run()
except SousaError as error:  # one sentence with the cure in it; anything else is a bug and keeps its traceback
    st.error(str(error), icon=":material/error:")
