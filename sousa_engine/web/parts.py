"""Shared parts of the pages: opening the store, badges for status and weights, numbers with their n, a run picker."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from sousa_engine.analysis.significance import Proportion
from sousa_engine.analysis.sweeps import Tally, TrialRow
from sousa_engine.core.errors import WorkspaceError
from sousa_engine.core.records import Run, RunRow, RunStatus, Sweep, SweepStatus
from sousa_engine.maintenance import check
from sousa_engine.store import Store, migrations
from sousa_engine.workspace import PROJECT_ROOT, default_workspace

MOST_COMPARED = 40  # runs that Compare takes one by one; whole sweeps have no limit
_R = TypeVar("_R", Run, RunRow)
STATUS_COLORS = {
    RunStatus.QUEUED: "gray",
    RunStatus.STARTING: "blue",
    RunStatus.RUNNING: "blue",
    RunStatus.STOPPING: "orange",
    RunStatus.FINISHED: "green",
    RunStatus.FAILED: "red",
    RunStatus.STOPPED: "gray",
    RunStatus.LOST: "red",
}
STATUS_ICONS = {
    RunStatus.QUEUED: ":material/hourglass_empty:",
    RunStatus.STARTING: ":material/play_arrow:",
    RunStatus.RUNNING: ":material/play_arrow:",
    RunStatus.STOPPING: ":material/pause:",
    RunStatus.FINISHED: ":material/check:",
    RunStatus.FAILED: ":material/error:",
    RunStatus.STOPPED: ":material/stop:",
    RunStatus.LOST: ":material/help:",
}
SWEEP_COLORS = {
    SweepStatus.RUNNING: "blue",
    SweepStatus.PAUSED: "orange",
    SweepStatus.FINISHED: "green",
    SweepStatus.STOPPED: "gray",
    SweepStatus.FAILED: "red",
}
SWEEP_ICONS = {
    SweepStatus.RUNNING: ":material/play_arrow:",
    SweepStatus.PAUSED: ":material/pause:",
    SweepStatus.FINISHED: ":material/check:",
    SweepStatus.STOPPED: ":material/stop:",
    SweepStatus.FAILED: ":material/error:",
}


READ_ONLY = "You can view everything, but not change anything."


def page_path(name: str) -> str:
    """`page_path("run")` for st.switch_page and st.page_link: absolute, because the router is in another folder."""
    return str(PROJECT_ROOT / "pages" / f"{name}.py")


def doctor_link() -> None:
    """A link to the Doctor, for problems of the machine rather than of the input."""
    st.page_link(page_path("doctor"), label="Open the Doctor to find out what is wrong", icon=":material/stethoscope:")


@contextmanager
def open_store() -> Iterator[Store]:
    """The store of the workspace for this rerun; read-only if the workspace is, which the router reports."""
    workspace = default_workspace()
    try:
        store = Store.open(workspace)
    except WorkspaceError as error:
        try:
            store = Store.open(workspace, readonly=True)
        except WorkspaceError:
            raise error from None
        if not migrations.read_only(workspace):  # another reason, which the router does not report
            st.warning(plain(f"{error} {READ_ONLY}"), icon=":material/lock:")
            doctor_link()
    with store:
        yield store


def name_tab(title: str) -> None:
    """Name the browser's tab after what the page shows. title: made by `titles`."""
    st.set_page_config(page_title=title)


def hide_streamlits_download() -> None:
    """Hide the download in table toolbars, which does not escape formulas. The pages' own CSV buttons do."""
    button = "[data-testid=stElementToolbarButton]:has([aria-label^='Download as CSV'])"
    st.html(f"<style>{button}{{display:none}}</style>")


def danger_button(label: str, *, key: str, icon: str, disabled: bool = False) -> bool:
    """A red button, for what cannot be undone. White on this red has a contrast of 5.6 in both themes."""
    red = f".st-key-{re.sub('[^a-zA-Z0-9_-]', '-', f'danger-{key}')} button:enabled"
    st.html(
        f"<style>{red}{{background:#b8402f;border-color:#b8402f;color:#fff}}"
        f"{red}:is(:hover,:focus-visible){{background:#98301f;border-color:#98301f;color:#fff}}</style>"
    )
    with st.container(key=f"danger-{key}", width="content"):
        return st.button(label, icon=icon, disabled=disabled, key=key)


def by_width() -> None:
    """Call this once on a page that uses `desk` or `phone`."""
    st.html(
        "<style>[class*='st-key-phone-']{display:none}@media(max-width:640px){"
        "[class*='st-key-phone-']{display:flex}[class*='st-key-desk-']{display:none}}</style>"
    )


def desk(name: str) -> DeltaGenerator:
    """A container for content that needs a wide screen; hidden on phones. name: unique on the page."""
    return st.container(key=f"desk-{name}")


def phone(name: str) -> DeltaGenerator:
    """A container shown only on phones, in place of content that needs a wide screen."""
    return st.container(key=f"phone-{name}")


def listed(lines: Iterable[str], most: int | None = 12) -> str:
    """A Markdown list of Markdown lines. Lines beyond `most` are counted, not listed."""
    every = list(lines)
    shown = every if most is None else every[:most]
    more = [f"and {len(every) - len(shown)} more"] if len(shown) < len(every) else []
    return "\n".join(f"- {line}" for line in [*shown, *more])


def hundred(share: float | None) -> float | None:
    """A share as a percentage, for tables; rounded so that tables agree with percent()."""
    return None if share is None else round(100 * share, 1)


def form_token(form: str, pressed: bool) -> str:
    """A token for one submission of a form: the same for all clicks on its button, new when the form is redrawn.

    Repeated clicks, also in a tab that does not yet show the next page, carry the same token, and the store creates
    only one run per token. Call this after the button is drawn. pressed: the button's return value.
    """
    key = f"form {form}"
    token, sent = st.session_state.get(key, ("", True))
    if not token or (sent and not pressed):
        token = secrets.token_hex(8)
    st.session_state[key] = (token, pressed)
    return token


def queue_banner(*, on_its_page: bool) -> None:
    """Show that the queue is paused, if it is; on other pages than Queue, with a link to it."""
    workspace = default_workspace()
    if not workspace.has_db:
        return
    try:
        with Store.open(workspace) as store:
            state = store.queue.settings()
    except WorkspaceError:
        return  # the page reports it
    if state.is_paused:
        st.warning(
            f"The queue has been paused since {when(state.paused_at_ms)}. Active runs continue; no new run starts.",
            icon=":material/pause_circle:",
        )
        if not on_its_page:
            st.page_link(page_path("queue"), label="Resume it on the Queue page", icon=":material/low_priority:")


def forgotten_runs(store: Store) -> bool:
    """Warn if runs.db has no runs although run folders exist. Returns whether it warned."""
    said = "" if store.runs.count() else check.forgotten(store.workspace)
    if said:
        st.warning(plain(said), icon=":material/folder_off:")
    return bool(said)


def status_badge(status: RunStatus) -> None:
    st.badge(status.value, icon=STATUS_ICONS[status], color=STATUS_COLORS[status])  # pyright: ignore[reportArgumentType]


def sweep_badge(status: SweepStatus, failed: int = 0) -> None:
    """failed: number of failed runs; a finished sweep with failures is not shown as a success."""
    if failed and status is SweepStatus.FINISHED:
        st.badge(f"finished, {failed} failed", icon=":material/warning:", color="orange")
        return
    st.badge(status.value, icon=SWEEP_ICONS[status], color=SWEEP_COLORS[status])  # pyright: ignore[reportArgumentType]


def sweep_line(found: Sweep, count: Tally, best: str = "") -> None:
    """A sweep in a list: its name as a link, its status, progress and best result."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", border=True):
        st.page_link(
            page_path("sweeps"),
            label=f":primary[{plain(found.name)}]",
            query_params={"id": found.id},
            width="content",
        )
        sweep_badge(found.status, count.failed)
        failed = f", {count.failed} failed" if count.failed else ""
        st.caption(f"{count.over} of {count.expected} runs done{failed}", width="content")
        if best:
            st.caption(f"best by valid: {best}", width="content")
        st.caption(when(found.created_at_ms), width="content")


def weights_badge(run: Run | RunRow) -> None:
    """Which weights the backbone started from; random weights are always labelled."""
    if run.is_random:
        st.badge("random weights", icon=":material/casino:", color="orange", help="A control without pretraining.")
    else:
        badge(weights_text(run), icon=":material/download_done:", color="green")


def weights_text(run: Run | RunRow) -> str:
    """Short: "random weights", "pretrained", or the name of an imported file."""
    if run.is_random:
        return "random weights"
    weights = run.weights if isinstance(run, RunRow) else run.config.model.weights
    return "pretrained" if weights == "pretrained" else Path(weights).name


def plain(text: str) -> str:
    """Escape text from a user or a program where Streamlit reads Markdown: shown unchanged, with URLs as links.

    Control characters, also those that change text direction, are shown as escapes.
    """
    parts = _ADDRESS.split(text)
    shown = []
    for i, part in enumerate(parts):
        if i % 2 == 0:
            shown.append(_escaped(part))
        elif re.match(r"[.,;:!?]*(\s|$)", parts[i + 1]):
            shown.append(part)
        else:  # otherwise the URL would include the text that follows
            shown.append(f"<{part}>")
    return "".join(shown)


def badge(text: str, **how: Any) -> None:
    """st.badge with text from a user or a program. It escapes brackets itself, so they must not be escaped twice."""
    st.badge(re.sub(r"\\([\[\]])", r"\1", plain(text)), **how)


_ADDRESS = re.compile(r"(https?://[\w.-]+(?::\d+)?[\w./%?=&~+-]*)")  # a backslash would lead to another host
_TURNING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_EMOJI = re.compile(r":(?=(?:[+-]1|100|1234|[\w-]*[A-Za-z][\w-]*):)")
_INDENTED = re.compile(r"^(?: {4}|\t)[ \t]*", re.MULTILINE)
_BEGINS_A_BLOCK = re.compile(r"^(\s*)(?=[-+](?:\s|$)|[-=]+\s*$)|^(\s*\d+)(?=[.)](?:\s|$))", re.MULTILINE)


def _escaped(text: str) -> str:
    found = _TURNING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    # Streamlit finds emoji codes after removing escapes, so only an invisible character in between prevents them.
    found = _EMOJI.sub(":\u2060", found)
    found = re.sub(r"([\\`*_\[\]#$~<>|&]|:(?=\w))", r"\\\1", found)
    found = _INDENTED.sub(lambda match: "\u00a0" * len(match[0].expandtabs(4)), found)
    return _BEGINS_A_BLOCK.sub(r"\1\2\\", found)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(proportion: Proportion | None) -> str:
    """`n = 200 · 95 % interval 51.6 to 65.1 %`."""
    if proportion is None:
        return ""
    return f"n = {proportion.n:,} · 95 % interval {100 * proportion.low:.1f} to {100 * proportion.high:.1f} %"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def when(at_ms: int | None) -> str:
    """A time in the visitor's time zone, to the second."""
    if at_ms is None:
        return "–"
    return datetime.fromtimestamp(at_ms / 1000, time_zone()).strftime("%Y-%m-%d %H:%M:%S")


def time_zone() -> ZoneInfo | None:
    """The browser's time zone; None, meaning this machine's, if the browser does not send one."""
    try:
        return ZoneInfo(st.context.timezone) if st.context.timezone else None
    except (ZoneInfoNotFoundError, ValueError):
        return None


def reached(row: TrialRow) -> str:
    """The result of a setting so far: "test 58.1 %, mean of 3 seeds"; empty if there is none."""
    split, values, mean = ("test", row.test, row.mean_test) if row.test else ("valid", row.valid, row.mean_valid)
    if mean is None:
        return ""
    return f"{split} {percent(mean)}" + (f", mean of {len(values)} seeds" if len(values) > 1 else ", one seed")


def run_label(run: Run | RunRow) -> str:
    """For pickers: title, weights if random, status and the end of the id."""
    mark = " · random weights" if run.is_random else ""
    return f"{run.title}{mark} · {run.status.value} · {run.id[-4:]}"


def sweep_label(sweep: Sweep) -> str:
    """For pickers, and for the URL of a page about one sweep."""
    return f"{sweep.name} · {sweep.id}"


def pick_run(runs: Sequence[_R], *, key: str, label: str = "Run") -> _R | None:
    """A picker for runs, empty at first; returns None while no run is selected."""
    labels = {run.id: run_label(run) for run in runs}
    picked = st.selectbox(
        label, list(labels), index=None, format_func=labels.__getitem__, key=key, placeholder="Choose a run"
    )
    return next((run for run in runs if run.id == picked), None)
