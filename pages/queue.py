"""Queue: which run uses which slot, and which runs wait in which order. Move, remove and pause."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from sousa_engine.core.records import QueueSettings, Run, RunRow, RunStatus
from sousa_engine.runs.executors import local, slots
from sousa_engine.web import manage, parts, titles
from sousa_engine.web.guard import refuse

if __name__ == "queue":  # `streamlit run` of this file, past app.py and its guard
    app = st.App(refuse())

REFRESH_S, IDLE_S = 2, 15
MOST_SHOWN = 50


def main() -> None:
    manage.dialogs(after_deletion=lambda run_ids: None)
    with parts.open_store() as store:
        state, active = store.queue.settings(), bool(store.queue.live() or store.queue.waiting_devices())
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Queue", anchor=False, width="content")
        if state.is_paused:
            st.button(
                "Resume the queue",
                icon=":material/play_circle:",
                on_click=manage.resume_queue,
                type="primary",
                key="resume",
            )
        else:
            st.button(
                "Pause the queue",
                icon=":material/pause_circle:",
                on_click=manage.pause_queue,
                help="No new runs start; running ones continue.",
                key="pause",
            )
    # Fast only while a run is active; otherwise slow, to notice runs queued from a terminal.
    st.fragment(draw, run_every=REFRESH_S if active else IDLE_S)(active)


def draw(was_active: bool) -> None:
    if manage.has_news():
        st.rerun()  # the page reports what was done
    with parts.open_store() as store:
        if bool(store.queue.live() or store.queue.waiting_devices()) is not was_active:
            st.rerun()  # the page switches the refresh rate
        state, live, waiting, count = (
            store.queue.settings(),
            store.queue.live(),
            store.queue.waiting(MOST_SHOWN),
            store.queue.count(),
        )
    draw_slots(state, live)
    draw_waiting(waiting, count)


def draw_slots(state: QueueSettings, live: Sequence[Run]) -> None:
    held = {run.device: run for run in live}
    st.subheader("Slots", anchor=False)
    for slot in dict.fromkeys([*slots(local.devices(), state.cpu_slots), *filter(None, held)]):
        run = held.get(slot)
        with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"slot-{slot}"):
            st.badge(slot, icon=":material/memory:", color="gray" if run is None else "blue")
            if run is None:
                st.caption("free", width="stretch")
                continue
            link(run.id, run.title)
            parts.status_badge(run.status)
            share = titles.progress_share(run)
            st.caption("starting up" if share is None else parts.percent(share), width="stretch")
            st.button(
                "Stop and save",
                icon=":material/stop_circle:",
                type="tertiary",
                on_click=manage.stop,
                args=([run.id],),
                disabled=run.status is RunStatus.STOPPING,
                key=f"stop-{run.id}",
            )
    key = f"cpu_slots-{state.cpu_slots}"  # so that it shows a value set from a terminal
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "CPU slots",
            str(state.cpu_slots),
            key=key,
            width=180,
            on_change=lambda: manage.set_cpu_slots(st.session_state[key]),
            help="How many runs may share the CPU. They split its threads evenly. A GPU takes one run at a time.",
        )
        threads = local.share_of_threads(state.cpu_slots)
        st.caption(f"{threads} thread{'s' if threads > 1 else ''} per run on the CPU", width="content")


def draw_waiting(waiting: Sequence[RunRow], count: int) -> None:
    st.subheader(f"Waiting: {count:,}" if count else "Waiting", anchor=False)
    if not count:
        st.caption("The queue is empty.")
        return
    st.caption("Each free slot takes the first run that can use it.")
    for place, row in enumerate(waiting, start=1):
        draw_row(place, row, is_last=place == count)
    if count > len(waiting):
        st.caption(f"{count - len(waiting):,} more not shown. Open a run to move it to the front.")


def draw_row(place: int, row: RunRow, *, is_last: bool) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center", gap="small", key=f"row-{row.id}"):
        st.markdown(f"**{place}**", width="content")
        link(row.id, row.title)
        sweep = " · part of a sweep" if row.sweep_id else ""
        what = f"{row.backbone} · {row.dataset} · seed {row.seed}"
        st.caption(f"{row.device} · {parts.plain(what)}{sweep}", width="stretch")
        steps = (
            ("Front", ":material/vertical_align_top:", manage.move, 1, place == 1, "Start this run next."),
            ("Up", ":material/arrow_upward:", manage.move_by, -1, place == 1, "Move one place up."),
            ("Down", ":material/arrow_downward:", manage.move_by, 1, is_last, "Move one place down."),
        )
        with st.container(horizontal=True, gap="small", width="content"):  # they wrap as one group
            for label, icon, act, where, disabled, help in steps:
                st.button(
                    label,
                    icon=icon,
                    type="tertiary",
                    on_click=act,
                    args=(row.id, where),
                    disabled=disabled,
                    help=help,
                    key=f"{label.lower()}-{row.id}",
                )
            st.button(
                "Remove",
                icon=":material/cancel:",
                type="tertiary",
                on_click=manage.stop,
                args=([row.id],),
                help="Marks it stopped; it will not start.",
                key=f"out-{row.id}",
            )


def link(run_id: str, title: str) -> None:
    st.page_link(
        parts.page_path("run"), label=f":primary[{parts.plain(title)}]", query_params={"id": run_id}, width="content"
    )


main()
