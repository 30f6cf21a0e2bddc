"""The router: the pages, their URLs, and the messages that every page can show."""

from pathlib import Path

import streamlit as st

from sousa_engine.core.errors import SousaError
from sousa_engine.store import migrations
from sousa_engine.web import addresses, parts, tell, titles
from sousa_engine.web.components.browser_tab import browser_tab
from sousa_engine.web.parts import READ_ONLY, plain
from sousa_engine.workspace import PROJECT_ROOT, default_workspace
from sousa_engine.workspace.file_systems import taken_risk

ASSETS = Path(__file__).resolve().parent / "assets"


def page(name: str, title: str, icon: str, help: str, **options):
    path = PROJECT_ROOT / "pages" / f"{name}.py"
    return st.Page(path, title=title, icon=f":material/{icon}:", help=help, url_path=name, **options)


PAGES = [
    page("home", "Studio", "home", "An introduction, and your newest runs.", default=True),
    page("backbones", "Backbones", "account_tree", "Explore a network and tick the modules that get LoRA."),
    page("data", "Data", "library_music", "Browse a data set: classes, splits, players and every clip."),
    page("launch", "Launch", "rocket_launch", "Set up a run, check it and start it."),
    page("runs", "Runs", "monitoring", "All runs: queued, running and finished."),
    page("queue", "Queue", "low_priority", "What is running in each slot, and what is waiting."),
    page("sweeps", "Sweeps", "grid_view", "Many settings at once, with several seeds each."),
    page("compare", "Compare", "compare_arrows", "Two or more runs side by side."),
    page("doctor", "Doctor", "stethoscope", "Checks this installation and says how to fix each problem."),
    page("run", "Run", "show_chart", "One run: curves, progress, log and settings.", visibility="hidden"),
]

# The icon is set before st.navigation; otherwise the browser fetches the page's icon from a Google server.
st.set_page_config(page_icon=str(ASSETS / "favicon.svg"), layout="wide")
current = st.navigation(PAGES, position="top")
if addresses.enter(current.url_path):  # otherwise the tab keeps the name that the page gave it
    parts.name_tab(titles.of_page(current.title))
browser_tab()
parts.hide_streamlits_download()
st.logo(str(ASSETS / "logo.svg"), size="medium")

workspace = default_workspace()
if trouble := workspace.full_disk():
    st.error(trouble, icon=":material/hard_drive:")
    parts.doctor_link()
if workspace.has_db and (trouble := migrations.read_only(workspace)):
    st.warning(plain(f"{trouble} {READ_ONLY}"), icon=":material/lock:")
    parts.doctor_link()
if risk := taken_risk(workspace):
    st.warning(plain(risk), icon=":material/lan:")
parts.queue_banner(on_its_page=current.url_path == "queue")
try:
    current.run()
except SousaError as error:
    tell(error)
