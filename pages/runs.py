"""Runs: every run with its status, progress and results. Find, open, compare, tag, archive and delete runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import streamlit as st

from sousa_engine.analysis.export import runs_csv
from sousa_engine.core.errors import SousaError
from sousa_engine.core.records import RunFilter, RunRow, RunStatus
from sousa_engine.store import Store
from sousa_engine.web import manage, parts
from sousa_engine.web.components.run_table import PAGE_ROWS, Asked, asked, run_table, tick
from sousa_engine.web.guard import refuse
from sousa_engine.workspace import default_workspace

if __name__ == "runs":  # `streamlit run` of this file, past app.py and its guard
    app = st.App(refuse())

REFRESH_S, IDLE_S = 2, 15
STOP_WIDTH, ARCHIVE_WIDTH = 110, 135  # pixels for the longest label, so that another label moves no other button


def main() -> None:
    manage.dialogs(after_deletion=lambda run_ids: None)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Runs", anchor=False, width="content")
        if st.button("Launch a run", icon=":material/rocket_launch:", type="primary", key="launch"):
            st.switch_page(parts.page_path("launch"))
    with parts.open_store() as store:
        if not store.runs.count():
            if not parts.forgotten_runs(store):
                invite()
            return
        wanted = asked_for(store)
        active = is_active(store)
    # Fast only while a run is active; otherwise slow, to notice runs queued from a terminal.
    st.fragment(table, run_every=REFRESH_S if active else IDLE_S)(wanted, active)


def invite() -> None:
    with st.container(border=True, horizontal_alignment="center", gap="medium"):
        st.space("small")
        st.subheader("Nothing trained yet", text_alignment="center", anchor=False)
        st.write("The embedded data and backbones need no download, no GPU and no internet connection.")
        st.page_link(parts.page_path("launch"), label="Launch a run", icon=":material/rocket_launch:")
        st.space("small")


def asked_for(store: Store) -> RunFilter:
    """Draw the row of filters, all of which are kept in the URL, and return them."""
    tags, sweeps = list(store.marks.tags()), {parts.sweep_label(sweep): sweep.id for sweep in store.sweeps.all()}
    with st.container(horizontal=True, vertical_alignment="center"):
        words = st.text_input(
            "Search",
            key="q",
            bind="query-params",
            placeholder="Search titles, data, tags, notes, ids",
            width=300,
            icon=":material/search:",
            label_visibility="collapsed",
        )
        statuses = st.pills(
            "Status",
            [status.value for status in RunStatus],
            key="status",
            bind="query-params",
            selection_mode="multi",
            label_visibility="collapsed",
        )
        chosen_tags = []
        if tags:
            chosen_tags = st.multiselect(
                "Tags",
                tags,
                key="tag",
                bind="query-params",
                placeholder="Any tag",
                width=220,
                label_visibility="collapsed",
            )
        sweep = None
        if sweeps:
            sweep = st.selectbox(
                "Sweep",
                list(sweeps),
                key="of_sweep",
                bind="query-params",
                index=None,
                placeholder="Any sweep",
                width=220,
                label_visibility="collapsed",
            )
        archived = st.toggle("Archived", key="archived", bind="query-params", help="Show archived runs instead.")
    return RunFilter(
        words=words or "",
        statuses=tuple(RunStatus(status) for status in statuses or ()),
        tags=tuple(chosen_tags),
        sweep_id=sweeps[sweep] if sweep else None,
        archived=archived,
    )


def is_active(store: Store) -> bool:
    return bool(store.queue.live() or store.queue.waiting_devices())


def table(wanted: RunFilter, was_active: bool) -> None:
    if manage.has_news():
        st.rerun()  # the page draws the dialog or reports what was done
    of = repr(wanted)
    look = asked(of)
    with parts.open_store() as store:
        if is_active(store) is not was_active:
            st.rerun()  # the page switches the refresh rate
        first = look.page * PAGE_ROWS
        found = store.runs.listing(wanted, sort=look.sort, descending=look.descending, limit=PAGE_ROWS, offset=first)
        if first and not found.rows:  # the list is shorter now
            first = (found.total - 1) // PAGE_ROWS * PAGE_ROWS
            found = store.runs.listing(
                wanted, sort=look.sort, descending=look.descending, limit=PAGE_ROWS, offset=first
            )
        picked = store.runs.rows(look.ticked)
        sparklines = store.metrics.sparklines([row.id for row in found.rows], "valid/accuracy")
    if len(picked) < len(look.ticked):
        tick(row.id for row in picked)  # the others were deleted
    listed = {row.id for row in found.rows}
    toolbar(picked, wanted, look, hidden=sum(row.id not in listed for row in picked))
    if not found.total:
        elsewhere = "" if wanted.archived else " Archived runs are listed separately: use the switch above."
        st.info(f"No run matches. Clear the search or the filters.{elsewhere}", icon=":material/filter_alt_off:")
        return
    opened = run_table(found.rows, sparklines, of=of, total=found.total, first=first)
    st.caption("n = clips. Sparklines span 0 to 100 %.")
    if opened:
        st.switch_page(parts.page_path("run"), query_params={"id": opened})


def toolbar(picked: Sequence[RunRow], wanted: RunFilter, look: Asked, *, hidden: int) -> None:
    """hidden: how many of the ticked runs the table does not show now."""
    ids = [row.id for row in picked]
    alive = [row.id for row in picked if not row.status.is_over]
    are_archived = bool(picked) and all(row.archived_at_ms for row in picked)
    of_ticked = partial(do_to_ticked, repr(wanted))
    unfinished = (
        "1 of these is still queued or running; stop it first."
        if len(alive) == 1
        else f"{len(alive):,} of these are still queued or running; stop them first."
    )
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if st.button("Open", icon=":material/open_in_new:", disabled=len(ids) != 1, key="open_run"):
            st.switch_page(parts.page_path("run"), query_params={"id": ids[0]})
        if st.button(
            "Compare",
            icon=":material/compare_arrows:",
            disabled=not 2 <= len(ids) <= parts.MOST_COMPARED,
            key="compare_runs",
            help=f"Select 2 to {parts.MOST_COMPARED} runs. To compare a whole sweep, open it.",
        ):
            st.switch_page(parts.page_path("compare"), query_params={"run": ids})
        st.button(
            "Tag",
            icon=":material/sell:",
            disabled=not ids,
            on_click=of_ticked,
            args=(partial(manage.ask, "tag"),),
            key="tag_runs",
        )
        st.button(
            "Unarchive" if are_archived else "Archive",
            icon=":material/unarchive:" if are_archived else ":material/archive:",
            disabled=not ids or bool(alive),
            on_click=of_ticked,
            args=(manage.unarchive if are_archived else manage.archive,),
            help=unfinished if alive else None if are_archived else "Hidden from the list, not deleted.",
            key="unarchive_runs" if are_archived else "archive_runs",
            width=ARCHIVE_WIDTH,
        )
        st.button(
            "Delete",
            icon=":material/delete:",
            disabled=not ids or bool(alive),
            on_click=of_ticked,
            args=(partial(manage.ask, "delete"),),
            help=unfinished if alive else None,
            key="delete_runs",
        )
        st.button(
            f"Stop {len(alive)}" if len(alive) > 1 else "Stop",
            icon=":material/stop_circle:",
            disabled=not alive,
            on_click=of_ticked,
            args=(manage.stop,),
            kwargs={"alive": True},
            help="Running ones save a checkpoint first.",
            key="stop_runs",
            width=STOP_WIDTH,
        )
        st.button(
            "Stop now",
            icon=":material/dangerous:",
            disabled=not alive,
            on_click=of_ticked,
            args=(partial(manage.ask, "kill"),),
            kwargs={"alive": True},
            help="Kills them now; progress since their last checkpoint is lost.",
            key="kill_runs",
        )
        pressed = st.button(
            "Clone",
            icon=":material/replay:",
            disabled=not ids,
            help="Queue a new run with the settings of each ticked run, for example to retry failed ones.",
            key="clone_runs",
        )
        token = parts.form_token("clone_runs", pressed)
        if pressed and ids and manage.clone(ids, token):
            tick(())  # this page stays open, so that an extra click finds nothing ticked
            st.rerun()
        st.download_button(
            "CSV",
            data=lambda: listed_csv(wanted, look),
            file_name="runs.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
            help="All runs in this list, in this order.",
            key="csv",
        )
        if ids:
            st.button("Untick all", type="tertiary", on_click=tick, args=((),), key="untick_runs")
            of_them = f", {hidden} of them not shown here" if hidden else ""
            st.caption(f"{manage.count(ids)} ticked{of_them}", width="content")


def do_to_ticked(of: str, act: Callable[[list[str]], None], *, alive: bool = False) -> None:
    """Act on the runs that are ticked when a button is clicked: a tick can be newer than the drawn button.

    of: the list, as `asked` names it. alive: leave out finished runs.
    """
    try:
        with parts.open_store() as store:
            rows = store.runs.rows(asked(of).ticked)
    except SousaError as error:
        st.toast(parts.plain(str(error)), icon=":material/error:")
        return
    if ids := [row.id for row in rows if not (alive and row.status.is_over)]:
        act(ids)


def listed_csv(wanted: RunFilter, look: Asked) -> bytes:
    with Store.open(default_workspace()) as store:
        found = store.runs.listing(wanted, sort=look.sort, descending=look.descending)
    return runs_csv(found.rows).encode("utf-8-sig")  # without the byte-order mark, Excel assumes another encoding


main()
