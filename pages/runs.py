"""Runs: every run with its status, progress and results; open one, or compare several."""

from __future__ import annotations

import hashlib

import pandas as pd
import streamlit as st

from sousa_engine.analysis.compare import Result, results
from sousa_engine.records import Run, RunStatus
from sousa_engine.web import parts

REFRESH_S, IDLE_S = 2, 15
MOST_COMPARED = 40
ORDER = (
    "title", "open", "status", "progress", "valid", "valid_n", "test", "test_n", "weights", "seed", "created", "took",
    "trainable", "targets", "backbone", "data", "device", "id",
)  # fmt: skip
OPTIONS = [status.value for status in RunStatus]


def main() -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("Runs", anchor=False, width="content")
        if st.button("Launch a training", icon=":material/rocket_launch:", type="primary", key="launch"):
            st.switch_page(parts.page_path("launch"))
    with parts.open_store() as store:
        runs = store.runs()
    if not runs:
        invite()
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.text_input(
            "Search",
            key="q",
            bind="query-params",
            placeholder="Search title, backbone, data, id",
            width=280,
            icon=":material/search:",
            label_visibility="collapsed",
        )
        st.pills(
            "Status", OPTIONS, key="status", bind="query-params", selection_mode="multi", label_visibility="collapsed"
        )
    # Quick only while something moves; slow otherwise, to notice a run that a terminal queued.
    active = is_active(runs)
    st.fragment(table, run_every=REFRESH_S if active else IDLE_S)(active)


def invite() -> None:
    with st.container(border=True, horizontal_alignment="center", gap="medium"):
        st.space("small")
        st.subheader("Nothing trained yet", text_alignment="center", anchor=False)
        st.write("The embedded data and backbone need no download, no GPU and no internet.")
        st.page_link(parts.page_path("launch"), label="Launch a training", icon=":material/rocket_launch:")
        st.space("small")


def table(was_active: bool) -> None:
    with parts.open_store() as store:
        runs = store.runs()
        known = {run.id: run for run in runs}
        if is_active(runs) is not was_active:
            st.rerun()  # the page gives the timer its other pace
        shown, picked = rows_to_show(runs)
        found = results([known[i] for i in shown], store.summaries(shown))
    toolbar(picked, hidden=len(matching(runs)) - len(shown) if picked else 0)
    if not shown:
        st.info("No run matches. Clear the search or the status filter.", icon=":material/filter_alt_off:")
        return
    st.dataframe(
        frame([known[i] for i in shown], found),
        key=table_key(shown),
        hide_index=True,
        column_order=ORDER,
        on_select="rerun",
        selection_mode="multi-row",
        height="content" if len(shown) <= 15 else 560,
        placeholder="–",
        column_config=columns(shown),
        alt="All runs, newest first",
    )
    st.caption(f"{len(shown)} of {len(runs)} runs. Tick rows to compare them; every accuracy has its n beside it.")


def is_active(runs: tuple[Run, ...]) -> bool:
    return any(not run.status.is_over for run in runs)


def rows_to_show(runs: tuple[Run, ...]) -> tuple[list[str], list[str]]:
    """(ids of the rows, ids that are ticked). A selection is a list of row positions, so while something is ticked
    the rows stay what they were; the table's key changes with its rows, so a late click never means another run."""
    known = {run.id for run in runs}
    before = [run_id for run_id in st.session_state.get("runs_rows", []) if run_id in known]
    state = st.session_state.get(table_key(before))
    ticked = [before[row] for row in (state["selection"]["rows"] if state else []) if row < len(before)]
    shown = before if ticked else [run.id for run in matching(runs)]
    st.session_state["runs_rows"] = shown
    return shown, ticked


def matching(runs: tuple[Run, ...]) -> list[Run]:
    words = (st.session_state.get("q") or "").lower().split()
    statuses = st.session_state.get("status") or OPTIONS
    return [run for run in runs if run.status.value in statuses and all(word in text_of(run) for word in words)]


def text_of(run: Run) -> str:
    config = run.config
    return " ".join(
        [run.title, run.id, config.model.variant, config.data.dataset, config.lora.target_set, parts.weights_text(run)]
    ).lower()


def table_key(ids: list[str]) -> str:
    return "runs-" + hashlib.sha1(" ".join(ids).encode()).hexdigest()[:12]


def toolbar(picked: list[str], hidden: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Open", icon=":material/open_in_new:", disabled=len(picked) != 1, key="open_run"):
            st.switch_page(parts.page_path("run"), query_params={"id": picked[0]})
        if st.button(
            f"Compare selected ({len(picked)})" if picked else "Compare selected",
            icon=":material/compare_arrows:",
            disabled=not 2 <= len(picked) <= MOST_COMPARED,
            key="compare_runs",
            help=f"Tick 2 to {MOST_COMPARED} runs.",
        ):
            st.switch_page(parts.page_path("compare"), query_params={"run": picked})
        if hidden > 0:
            st.caption(f"{hidden} newer {'run' if hidden == 1 else 'runs'} will show when nothing is ticked.")
        opened = st.session_state.pop("runs_opened", None)
        if opened:
            st.switch_page(parts.page_path("run"), query_params={"id": opened})


def frame(runs: list[Run], found: tuple[Result, ...]) -> pd.DataFrame:
    rows = []
    for run, result in zip(runs, found, strict=True):
        valid, test = result.best_valid, result.test
        rows.append(
            {
                "title": run.title,
                "open": "Open",
                "status": [run.status.value],
                "progress": hundred(parts.progress_share(run)),
                "valid": hundred(valid and valid.value),
                "valid_n": valid.n if valid else None,
                "test": hundred(test and test.value),
                "test_n": test.n if test else None,
                "weights": [parts.weights_text(run)],
                "seed": run.config.seed,
                "backbone": run.config.model.variant,
                "data": run.config.dataset_name,
                "targets": targets_text(run),
                "trainable": result.trainable,
                "device": run.device or run.config.device,
                "took": result.seconds,
                "created": pd.Timestamp(run.created_at_ms, unit="ms", tz="UTC").tz_convert(parts.time_zone()),
                "id": run.id,
            }
        )
    return pd.DataFrame(rows).astype({"valid_n": "Int64", "test_n": "Int64", "trainable": "Int64"})


def hundred(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def targets_text(run: Run) -> str:
    lora = run.config.lora
    count = f"{len(lora.targets)} modules" if lora.targets else "head alone"
    return f"{lora.target_set} · {count}" if lora.target_set else count


def columns(shown: list[str]) -> dict:
    column = st.column_config
    weights = sorted({"random weights", "pretrained"})
    return {
        "title": column.TextColumn("Title", width=210),
        "open": column.ButtonColumn("", key="runs_open", on_click=open_row, args=(shown,), type="tertiary", width=60),
        "status": column.MultiselectColumn(
            "Status", options=OPTIONS, color=[parts.STATUS_COLORS[RunStatus(o)] for o in OPTIONS], width=95
        ),
        "progress": column.ProgressColumn("Progress", min_value=0, max_value=100, format="%d %%", width=120),
        "valid": column.NumberColumn("Best valid", format="%.1f %%", help="Best valid accuracy of all epochs"),
        "valid_n": column.NumberColumn("n valid", help="Clips in valid"),
        "test": column.NumberColumn("Test", format="%.1f %%", help="Measured once, on the best checkpoint"),
        "test_n": column.NumberColumn("n test", help="Clips in test"),
        "weights": column.MultiselectColumn("Weights", options=weights, color=["green", "orange"]),
        "seed": column.NumberColumn("Seed", format="%d"),
        "backbone": column.TextColumn("Backbone"),
        "data": column.TextColumn("Data"),
        "targets": column.TextColumn("Targets"),
        "trainable": column.NumberColumn("Trainable", format="localized", help="Trainable parameters"),
        "device": column.TextColumn("Device"),
        "took": column.NumberColumn("Took", format="%d s"),
        "created": column.DatetimeColumn("Created", format="YYYY-MM-DD HH:mm"),
        "id": column.TextColumn("Id"),
    }


def open_row(shown: list[str]) -> None:
    st.session_state["runs_opened"] = shown[st.session_state["runs_open"].row]


main()
