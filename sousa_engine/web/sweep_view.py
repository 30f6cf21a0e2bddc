"""One sweep on the Sweeps page: its status, its trials as tiles, failures with their causes, its definition."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import streamlit as st

from sousa_engine import targets
from sousa_engine.analysis.sweeps import (
    Failure,
    TrialRow,
    best_first,
    failures,
    latest,
    nearest_names,
    seconds_left,
    tally,
    trial_rows,
)
from sousa_engine.core import grammar, sweep_spec
from sousa_engine.core.config import with_values
from sousa_engine.core.errors import ConfigError, SousaError, UserError
from sousa_engine.core.records import Curve, Run, Summary, Sweep, SweepStatus
from sousa_engine.core.sweep_spec import SweepSpec
from sousa_engine.runs import sweep_learner, sweep_orders, sweep_plan
from sousa_engine.runs.sweep_orders import Queued
from sousa_engine.store import Store
from sousa_engine.web import handover, parts, sweep_form, sweep_marks
from sousa_engine.web.components.trial_tiles import Wish, trial_tiles
from sousa_engine.web.report_view import report_downloads

REFRESH_S = 3
POINTS = 200  # per sparkline of a tile, at most
ORDERS = ("by number", "best first")
SHOWN_STATUSES = ("running", "starting", "stopping", "queued", "finished", "pruned", "failed", "lost", "stopped")


def one_sweep(found: Sweep) -> None:
    """Draw the sweep, refreshed every few seconds while it can still change."""
    with parts.open_store() as store:
        runs = store.sweeps.runs(found.id)
    try:
        spec = sweep_spec.build(found.spec)
    except ConfigError as error:
        header(found, None, 0)
        st.error(parts.plain(f"The definition of this sweep cannot be read: {error}"), icon=":material/error:")
        return
    header(found, spec, tally(found, runs).failed)
    if found.reason:
        show = st.error if found.status is SweepStatus.FAILED else st.info
        show(parts.plain(found.reason), icon=":material/info:")
    failed = failures(runs, stopped=True)
    drawn = standing(found, runs)
    st.fragment(wall, run_every=REFRESH_S if is_open(found, runs) else None)(found.id, drawn)
    failures_section(found, failed)
    definition(found, spec)


def is_open(found: Sweep, runs: Sequence[Run]) -> bool:
    return not found.status.is_over or any(not run.status.is_over for run in runs)


def standing(found: Sweep, runs: Sequence[Run]) -> tuple[object, ...]:
    """Everything that the page outside of the tiles depends on: when it changes, the whole page is redrawn."""
    failed = tuple(run.id for failure in failures(runs, stopped=True) for run in failure.runs)
    return found.status, found.reason, found.spec, found.note, found.archived_at_ms, is_open(found, runs), failed


# Title, badges and actions


def header(found: Sweep, spec: SweepSpec | None, failed: int) -> None:
    st.page_link(parts.page_path("sweeps"), label=":primary[All sweeps]", icon=":material/arrow_back:")
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title(parts.plain(found.name), anchor=False, width="content")
        with st.container(horizontal=True, width="content", vertical_alignment="center"):
            if spec:
                actions(found, spec)
            sweep_marks.marks(found)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        parts.sweep_badge(found.status, failed)
        if spec:
            st.badge(spec.sampler, icon=":material/grid_view:", color="gray", help=sweep_spec.SAMPLERS[spec.sampler])
            seeds = ", ".join(map(str, spec.seeds))
            each = "Every setting is trained with each seed"
            st.badge(f"seeds {seeds}", icon=":material/tag:", color="gray", help=each)
        if found.archived_at_ms is not None:
            st.badge("archived", icon=":material/archive:", color="gray")
        st.caption(f"{found.id} · {parts.when(found.created_at_ms)}")
    if found.note:
        st.text(found.note)


def actions(found: Sweep, spec: SweepSpec) -> None:
    if found.status is SweepStatus.RUNNING:
        st.button(
            "Pause", icon=":material/pause:", key="sweep.pause", on_click=steer,
            args=(found.id, sweep_learner.pause, "Sweep paused. Active runs continue; the rest wait."),
            help="Queued runs wait; active runs continue.",
        )  # fmt: skip
    elif found.status is SweepStatus.PAUSED:
        st.button(
            "Resume", icon=":material/play_arrow:", key="sweep.resume", on_click=steer,
            args=(found.id, sweep_orders.resume, "Sweep resumed."),
        )  # fmt: skip
    if not found.status.is_over:
        with st.popover("Stop", icon=":material/stop_circle:"):
            st.write("Queued runs leave the queue; active runs save a checkpoint and stop. Results so far are kept.")
            st.button(
                "Stop this sweep", type="primary", key="sweep.stop", on_click=steer,
                args=(found.id, sweep_orders.stop, "Sweep stopped."),
            )  # fmt: skip
    report_downloads(found.name, sweep_id=found.id)
    with st.popover("Add seeds", icon=":material/add:"):
        seeds = f"sweep.seeds.{found.id}"
        st.text_input("More seeds", key=seeds, placeholder=f"{max(spec.seeds) + 1} {max(spec.seeds) + 2}")
        enlarge_button("Train all settings with these seeds", found, "seeds", partial(add_seeds, seeds))
    if spec.sampler == "grid":
        with st.popover("Extend an axis", icon=":material/add:"):
            axis, values = f"sweep.extend.{found.id}", f"sweep.extend.values.{found.id}"
            st.selectbox("Axis", [one.field for one in spec.axes], key=axis)
            st.text_input("More values", key=values, placeholder="values, separated by commas")
            enlarge_button("Train the new combinations", found, "extend", partial(extend, axis, values))
    else:
        with st.popover("Add trials", icon=":material/add:"):
            count = f"sweep.more.{found.id}"
            st.number_input("More trials", min_value=1, max_value=sweep_spec.MOST_RUNS, value=6, step=1, key=count)
            enlarge_button("Add these trials", found, "more", partial(add_trials, count))


def steer(sweep_id: str, verb: Callable[[Store, str], bool], said: str) -> None:
    try:
        with parts.open_store() as store:
            changed = verb(store, sweep_id)
    except SousaError as error:
        st.toast(parts.plain(str(error)), icon=":material/error:")
        return
    st.toast(said if changed else "The sweep changed in the meantime.", icon=":material/info:")


def enlarge_button(label: str, found: Sweep, what: str, verb: Callable[[Store, Sweep], Queued]) -> None:
    """A button that enlarges a sweep, and below it the reason if that was refused, or what was queued."""
    refused = f"sweep.refused.{what}.{found.id}"
    st.button(label, key=f"sweep.do.{what}", type="primary", on_click=enlarge, args=(found.id, verb, refused))
    if refused in st.session_state:
        st.error(parts.plain(st.session_state[refused]), icon=":material/error:")
    if said := st.session_state.get(f"{refused}.done"):
        st.caption(parts.plain(said))


def enlarge(sweep_id: str, verb: Callable[[Store, Sweep], Queued], refused: str) -> None:
    st.session_state.pop(refused, None)
    st.session_state.pop(f"{refused}.done", None)
    try:
        with parts.open_store() as store:
            found = store.sweeps.get(sweep_id)
            assert found is not None
            queued = verb(store, found)
    except SousaError as error:
        st.session_state[refused] = str(error)
        return
    sampled_later = found.spec.get("sampler") in sweep_spec.LEARNING and not queued.ids
    said = "The sampler will add them one by one." if sampled_later else queued.sentence
    st.session_state[f"{refused}.done"] = " ".join([said, *queued.notes])
    st.toast(parts.plain(said))


# These read their fields when the button is pressed: `seeds`, `axis`, `values` and `count` are session keys.


def add_seeds(seeds: str, store: Store, found: Sweep) -> Queued:
    more = sweep_spec.parse_seeds(st.session_state[seeds])
    return sweep_orders.add_seeds(store, found, more, created_by="page")


def extend(axis: str, values: str, store: Store, found: Sweep) -> Queued:
    field, more = sweep_spec.parse_axis(f"{st.session_state[axis]}={st.session_state[values]}")
    if not isinstance(more, list):
        raise ConfigError("A grid needs listed values: enter them separated by commas.")
    return sweep_orders.extend(store, found, field, more, created_by="page")


def add_trials(count: str, store: Store, found: Sweep) -> Queued:
    return sweep_orders.add_trials(store, found, int(st.session_state[count]), created_by="page")


# Live status


def wall(sweep_id: str, drawn: tuple[object, ...]) -> None:
    with parts.open_store() as store:
        found = store.sweeps.get(sweep_id)
        if found is None:  # deleted in another tab
            st.rerun()
        runs = store.sweeps.runs(sweep_id)
        now = latest(runs)
        summaries = store.metrics.summaries([run.id for run in now])
        curves = valid_curves(store, now, summaries)
    if standing(found, runs) != drawn:
        st.rerun()
    progress(found, runs)
    rows = trial_rows(runs, summaries)
    if not rows:
        st.info(
            "No setting has been sampled yet. The first follows when a slot is free.", icon=":material/hourglass_empty:"
        )
        return
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        order = st.segmented_control(
            "Order", ORDERS, default=ORDERS[0], key="sweep.order", required=True, persist_state="session",
            label_visibility="collapsed",
        )  # fmt: skip
        comparing = st.container(horizontal=True, width="content", vertical_alignment="center")
    wish = trial_tiles(sweep_id, best_first(rows) if order == ORDERS[1] else rows, curves)
    top = max((value for row in rows for value in row.valid), default=None)
    st.caption(
        "Valid and test accuracy are means over seeds; valid uses the best epoch of each seed and chooses the best "
        "setting."
        + (f" Sparklines: valid accuracy per epoch, one per seed, from 0 to {parts.percent(top)}." if top else "")
    )
    with comparing:
        compare_buttons(sweep_id, rows, wish)
    if wish.opened:
        st.switch_page(parts.page_path("run"), query_params={"id": wish.opened})


def valid_curves(store: Store, runs: Sequence[Run], summaries: Mapping[str, Mapping[str, Summary]]) -> dict[str, Curve]:
    return {
        run.id: store.metrics.curve(run.id, sweep_plan.METRIC, max_points=POINTS)
        for run in runs
        if sweep_plan.METRIC in summaries[run.id]
    }


def progress(found: Sweep, runs: Sequence[Run]) -> None:
    """Runs done out of all, number of runs by status, time left."""
    count = tally(found, runs)
    words = [f"{count.over:,} of {count.expected:,} runs done"]
    words += [f"{count.statuses[status]:,} {status}" for status in SHOWN_STATUSES if count.statuses[status]]
    if count.to_come:
        words.append(f"{count.to_come:,} to come")
    left = seconds_left(runs, count.to_come, time.time_ns() // 1_000_000)
    if found.status is SweepStatus.RUNNING and left is not None and count.over < count.expected:
        words.append(f"about {parts.duration(left)} left")
    st.progress(min(1.0, count.over / count.expected) if count.expected else 0.0, text=" · ".join(words))


def compare_buttons(sweep_id: str, rows: Sequence[TrialRow], wish: Wish) -> None:
    runs, seeds = to_compare(rows, wish.ticked)
    count, most = len(wish.ticked), parts.MOST_COMPARED
    if count > most:
        said = f"You ticked {count}; Compare takes up to {most} runs, or the whole sweep."
    elif seeds and any(len(row.runs) > seeds for row in rows if row.number in wish.ticked):
        said = (
            f"Compare takes up to {most} runs: the first {'seed' if seeds == 1 else f'{seeds} seeds'} of each tile. To "
            "see all, compare the whole sweep."
        )
    else:
        said = "Compare all seeds of the ticked tiles side by side."
    if st.button(
        f"Compare ticked ({len(runs)} runs)" if runs else "Compare ticked", icon=":material/compare_arrows:",
        disabled=len(runs) < 2, key="sweep.compare", help=said,
    ):  # fmt: skip
        st.switch_page(parts.page_path("compare"), query_params={"run": runs})
    st.page_link(
        parts.page_path("compare"), label=":primary[Compare the whole sweep]", icon=":material/table_chart:",
        query_params={"sweep": sweep_id}, width="content",
    )  # fmt: skip


def to_compare(rows: Sequence[TrialRow], ticked: Sequence[int]) -> tuple[list[str], int]:
    """(run ids, most seeds per trial): the same number of seeds for each trial, as many as Compare takes."""
    chosen = [row.runs for row in rows if row.number in ticked]
    seeds = parts.MOST_COMPARED // len(chosen) if chosen else 0
    return [run.id for runs in chosen for run in runs[:seeds]], seeds


# Failures


def failures_section(found: Sweep, failed: Sequence[Failure]) -> None:
    if not failed:
        return
    count = sum(len(failure.runs) for failure in failed)
    what = (
        "stopped"
        if all(f.is_stop for f in failed)
        else "failed or stopped"
        if any(f.is_stop for f in failed)
        else "failed"
    )
    st.subheader(f"{count} {'run' if count == 1 else 'runs'} {what}", anchor=False)
    for failure in failed:
        with st.container(border=True, gap="small"):
            one_failure(found, failure)


def one_failure(found: Sweep, failure: Failure) -> None:
    count = len(failure.runs)
    mark = hashlib.sha1(failure.cause.encode()).hexdigest()[:10]
    icon = ":material/stop_circle:" if failure.is_stop else ":red[:material/error:]"
    st.markdown(f"{icon} **{count} {'run' if count == 1 else 'runs, same cause'}**")
    st.text(failure.cause)
    labels = [f"{sweep_spec.label(dict(run.setting))} (seed {run.config.seed})" for run in failure.runs]
    st.caption(parts.plain("; ".join(labels[:6]) + (f" and {count - 6} more" if count > 6 else "")))
    ids = [run.id for run in failure.runs]
    these = "it" if count == 1 else f"these {count}"
    a, b, c = st.columns([2, 4, 2], vertical_alignment="bottom")
    again = a.button(
        f"Re-run {these}", icon=":material/replay:", key=f"sweep.again.{mark}", width="stretch",
        on_click=rerun, args=(found.id, ids, None, f"again {mark}"), help="Queue new runs of these trials, unchanged.",
    )  # fmt: skip
    parts.form_token(f"again {mark}", again)
    if not failure.is_of_targets:
        return
    typed = f"sweep.targets.{found.id}.{mark}"
    st.session_state.setdefault(typed, ",".join(nearest_names(failure.cause)))
    text = b.text_input("Other targets", key=typed, placeholder="qkv, or a set: core, default, all-linear")
    said, fits = checked_targets(failure.runs, text)
    fixed = c.button(
        f"Re-run {these} with these targets", icon=":material/healing:", key=f"sweep.fix.{mark}", width="stretch",
        disabled=not fits, on_click=rerun, args=(found.id, ids, typed, f"fix {mark}"),
    )  # fmt: skip
    parts.form_token(f"fix {mark}", fixed)
    if said:
        st.caption(parts.plain(said) if fits else f":red[{parts.plain(said)}]")


def checked_targets(runs: Sequence[Run], text: str) -> tuple[str, bool]:
    """(the modules that the entries match in each backbone of these runs, or the error; whether all match)."""
    if not text.strip():
        return "", False
    meant = []
    try:
        entries = grammar.entries(text)
        for variant in dict.fromkeys(run.config.model.variant for run in runs):
            outline = targets.load_outline(variant)
            count = len([path for path in targets.resolve_sets(outline, entries).paths if not outline.in_head(path)])
            meant.append(f"{count} {'module' if count == 1 else 'modules'} in {variant}")
    except UserError as error:
        return str(error), False
    return ", ".join(meant), True


def rerun(sweep_id: str, run_ids: Sequence[str], typed: str | None, form: str) -> None:
    """typed: session key of the field with other targets; None keeps the targets. form: a name for parts.form_token."""
    token = parts.form_token(form, pressed=True)
    try:
        targets = None if typed is None else grammar.entries(st.session_state[typed])
        with parts.open_store() as store:
            found = store.sweeps.get(sweep_id)
            runs = [run for run in map(store.runs.get, run_ids) if run is not None]
            assert found is not None
            queued = sweep_orders.rerun(store, found, runs, targets=targets, created_by="page", form_token=token)
    except SousaError as error:
        st.toast(parts.plain(str(error)), icon=":material/error:")
        return
    st.toast(f"{len(queued)} {'run' if len(queued) == 1 else 'runs'} queued.", icon=":material/replay:")


# Definition


def definition(found: Sweep, spec: SweepSpec) -> None:
    with st.expander("Definition", icon=":material/description:"):
        st.button(
            "Clone into a new sweep", icon=":material/content_copy:", key="sweep.clone", on_click=clone,
            args=(spec,), help="Fills the form with these settings.",
        )  # fmt: skip
        sweep_form.the_same(spec)


def clone(spec: SweepSpec) -> None:
    name = f"{spec.name}, again"[: sweep_spec.MOST_LETTERS] if spec.name else ""
    handover.leave_sweep_draft(with_values(spec, name=name))
    st.query_params.clear()
