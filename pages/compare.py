"""Compare: runs side by side, chosen by id (/compare?run=A&run=B) or as a whole sweep (/compare?sweep=ID)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import pandas as pd
import streamlit as st

from sousa_engine.analysis import verdict
from sousa_engine.analysis.compare import Conclusion, Result, conclude, paired_sentence, results, run_names
from sousa_engine.analysis.settings import MOST_SHOWN, Summaries, competing, names_in_verdict, ordered
from sousa_engine.analysis.significance import paired
from sousa_engine.analysis.sweeps import TrialRow, latest, out_of_competition
from sousa_engine.core.records import Prediction, Run, Sweep
from sousa_engine.store import Store
from sousa_engine.web import addresses, parts, titles
from sousa_engine.web.compare_baselines import reference, remark
from sousa_engine.web.compare_parts import Compared, curves, differences, matrices, setting_table
from sousa_engine.web.compare_sweep import axes, costs, parts_of_the_test
from sousa_engine.web.guard import refuse
from sousa_engine.web.report_view import report_downloads

if __name__ == "compare":  # `streamlit run` of this file, past app.py and its guard
    app = st.App(refuse())

CHOICE, SWEEP = "compare_choice", "compare_sweep"
REFRESH_S = 2


def main() -> None:
    st.title("Compare")
    parts.by_width()
    with parts.open_store() as store:
        sweep, runs = choose(store)
        parts.name_tab(titles.of_page(f"Compare {sweep.name}") if sweep else titles.of_comparison(runs))
        summaries = store.metrics.summaries([run.id for run in runs])
        if any(not run.status.is_over for run in runs) or (sweep and not sweep.status.is_over):
            st.fragment(follow, run_every=REFRESH_S)(sweep, [run.id for run in runs], stage(runs, summaries))
        if len(runs) < 2:
            return
        rows, shown = ordered(runs, summaries, of_sweep=sweep is not None)
        drawn = competing(runs, rows, shown, of_sweep=sweep is not None)
        predictions = {run.id: store.runs.predictions(run.id, "test") for run in drawn}
    known = reference(rows, predictions)
    compared = Compared(
        rows=rows, shown=shown, summaries=summaries, predictions=predictions, of_sweep=sweep is not None,
        baselines=known.found if known else None,
    )  # fmt: skip
    if sweep:
        headline(sweep, runs, rows)
    if len(shown) < len(rows):
        count = len(rows) - len(shown)
        others = "other setting appears" if count == 1 else "other settings appear"
        st.caption(
            f"The verdict, curves, matrices and score charts cover the {len(shown)} settings with the best mean valid "
            f"accuracy. {count} {others} only in the tables, axes and cost."
        )
    conclusion(drawn, rows, results(drawn, summaries), predictions)
    remark(known)
    if sweep:
        report_downloads(sweep.name, sweep_id=sweep.id)
    else:
        report_downloads("compared runs", run_ids=[run.id for run in runs])
    outcomes(compared, runs)
    st.fragment(sections)(compared)


def follow(sweep: Sweep | None, run_ids: Sequence[str], drawn: Hashable) -> None:
    """Redraw the page when a run starts or ends, a sweep adds runs, or a metric is measured for the first time."""
    with parts.open_store() as store:
        runs = latest(store.sweeps.runs(sweep.id)) if sweep else list(filter(None, map(store.runs.get, run_ids)))
        now = stage(runs, store.metrics.summaries([run.id for run in runs]))
    if now != drawn:
        st.rerun()


def stage(runs: Sequence[Run], summaries: Summaries) -> Hashable:
    """What the page draws differently: the status and the measured metrics of each run."""
    return tuple((run.id, run.status, frozenset(summaries.get(run.id, ()))) for run in runs)


def sections(compared: Compared) -> None:
    """Tabs, drawn when they are opened. They form a fragment, so that a choice in them does not redraw the verdict."""
    drawers = {"Curves": curves, "What differs": differences}
    if compared.has_axes:
        drawers["What matters"] = axes
    drawers |= {"Cost": costs, "Confusion": matrices, "Scores": parts_of_the_test}
    tabs = st.tabs(list(drawers), key="compare_tabs", on_change="rerun")
    for tab, draw in zip(tabs, drawers.values(), strict=True):
        if tab.open:
            with tab:
                draw(compared)


# What to compare: the URL holds it, so that every comparison can be shared and reloaded


def choose(store: Store) -> tuple[Sweep | None, Sequence[Run]]:
    """(the compared sweep, if any; the latest run of each of its trials and seeds, or the selected runs)."""
    follow_address(store)
    sweeps = {sweep.id: sweep for sweep in store.sweeps.all()}
    picked = None
    if sweeps:
        picked = st.selectbox(
            "Sweep", list(sweeps), format_func=lambda i: sweep_label(sweeps[i]), key=SWEEP, index=None,
            placeholder="Choose a sweep, or choose runs below",
        )  # fmt: skip
    if picked:
        write_address(sweep=picked)
        runs = latest(store.sweeps.runs(picked))
        if len(runs) < 2:
            st.info(
                f"You need two runs to compare; this sweep has {'only one so far' if runs else 'none yet'}.",
                icon=":material/info:",
            )
        return sweeps[picked], runs
    every = store.runs.all()
    if len(every) < 2:
        invite(len(every))
        return None, ()
    return None, pick_runs(every)


def follow_address(store: Store) -> None:
    """Select what the URL names whenever a visitor opens another one; also after another page, which drops choices."""
    sweep_id, run_ids = address()
    if not addresses.is_asked((sweep_id, run_ids)):
        return
    addresses.note((sweep_id, run_ids))
    sweep = store.sweeps.get(sweep_id) if sweep_id else None
    runs = {run_id: store.runs.get(run_id) for run_id in run_ids}
    found = [run_id for run_id, run in runs.items() if run and not run.unreadable]
    st.session_state[SWEEP] = sweep.id if sweep else None
    st.session_state[CHOICE] = found[: parts.MOST_COMPARED]
    if sweep_id and not sweep:
        st.warning(parts.plain(f"No sweep has the id {sweep_id}."), icon=":material/help:")
    if unknown := [run_id for run_id, run in runs.items() if not run]:
        st.warning(parts.plain(f"No run has the id {', '.join(unknown)}."), icon=":material/help:")
    for run in runs.values():
        if run and run.unreadable:
            st.warning(parts.plain(f"Run {run.id} is left out. {run.unreadable}"), icon=":material/help:")


def address() -> tuple[str, tuple[str, ...]]:
    """(the sweep, the runs) that the URL names."""
    return st.query_params.get("sweep", ""), tuple(dict.fromkeys(st.query_params.get_all("run")))


def write_address(sweep: str = "", runs: Sequence[str] = ()) -> None:
    wanted = sweep, tuple(runs)
    if wanted != address():
        st.query_params.from_dict({"sweep": sweep} if sweep else {"run": list(runs)})
    addresses.note(wanted)


def pick_runs(every: Sequence[Run]) -> list[Run]:
    known = {run.id: run for run in every}
    picked = st.multiselect(
        "Runs", list(known), format_func=lambda run_id: parts.run_label(known[run_id]), key=CHOICE,
        max_selections=parts.MOST_COMPARED,
        placeholder=f"Up to {parts.MOST_COMPARED} runs; charts stay readable up to {MOST_SHOWN} settings",
    )  # fmt: skip
    write_address(runs=picked)
    if len(picked) < 2:
        st.info("Choose two or more runs, here or by ticking them on the Runs page.", icon=":material/info:")
    return [known[run_id] for run_id in picked]


def invite(count: int) -> None:
    st.info(
        f"You need two runs to compare; there {'is only one so far' if count else 'are none yet'}.",
        icon=":material/info:",
    )
    st.page_link(parts.page_path("launch"), label="Launch a run", icon=":material/rocket_launch:")


def sweep_label(sweep: Sweep) -> str:
    return f"{sweep.name} · {sweep.status.value} · {sweep.id[-4:]}"


def headline(sweep: Sweep, runs: Sequence[Run], rows: Sequence[TrialRow]) -> None:
    """The numbers of settings, and of runs by status, in this sweep."""
    statuses = sum((row.statuses for row in rows), Counter())
    counted = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    st.caption(
        parts.plain(f"{sweep.name}: {len(rows)} setting{'' if len(rows) == 1 else 's'}, {len(runs)} runs ({counted}).")
    )


def conclusion(
    runs: Sequence[Run],
    rows: Sequence[TrialRow],
    found: Sequence[Result],
    predictions: dict[str, tuple[Prediction, ...]],
) -> None:
    counts = [len(predictions[run.id]) for run in runs]
    said = concluded(tuple(found), counts, names_in_verdict(rows, found), out_of_competition(runs), predictions)
    with st.container(border=True):
        st.markdown(f":material/balance: **{parts.plain(said.verdict)}**")
        for note in said.notes:
            st.markdown(parts.plain(note))
        measured = [(name, predictions[run.id]) for run, name in zip(runs, run_names(runs), strict=True)]
        measured = [(name, found) for name, found in measured if found]
        if len(measured) == 2:
            (first, of_first), (second, of_second) = measured
            difference = paired(of_first, of_second)
            if difference:
                st.markdown(parts.plain(paired_sentence(first, second, difference)))
        if said.pairs:
            with st.expander(
                f"How this was determined: {len(said.pairs)} {'pair' if len(said.pairs) == 1 else 'pairs'}"
            ):
                evidence(said)


@st.cache_data(max_entries=32, show_spinner="Comparing clip by clip …")
def concluded(
    found: tuple[Result, ...],
    counts: list[int],
    names: dict[str, str],
    excluded: dict[str, str],
    _predictions: dict[str, tuple[Prediction, ...]],
) -> Conclusion:
    """conclude(), cached across reruns of the page. A run's predictions arrive all at once and never change."""
    return conclude(found, _predictions, names=names, excluded=excluded)


def evidence(said: Conclusion) -> None:
    """The settings and all pairs of them, as used for the verdict."""
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Setting": row.name,
                    "Seeds": row.seeds,
                    "Mean": parts.hundred(row.accuracy.value),
                    "95 % interval": span(row.accuracy),
                    "Lowest seed": parts.hundred(row.lowest),
                    "Highest seed": parts.hundred(row.highest),
                    "n test": row.accuracy.n,
                }
                for row in said.order
            ]
        ),
        hide_index=True,
        column_config=dict.fromkeys(
            ("Mean", "Lowest seed", "Highest seed"), st.column_config.NumberColumn(format="%.1f %%")
        ),
        alt="Settings, ordered by mean test accuracy",
    )
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "A": pair.first,
                    "B": pair.second,
                    "Outcome": verdict.outcome_text(pair),
                    "A − B, points": verdict.points(pair.difference, plus=True),
                    "95 % interval": verdict.points_span(pair),
                    "p (Holm)": pair.adjusted_p,
                    "Seeds": f"{pair.seeds_first}, {pair.seeds_second}",
                    "Clips": pair.n_clips,
                }
                for pair in said.pairs
            ]
        ).astype({"p (Holm)": "Float64"}),
        hide_index=True,
        placeholder="–",
        column_config={"p (Holm)": st.column_config.NumberColumn(format="%.4f")},
        alt="Pairs of settings",
    )
    st.caption(verdict.METHOD)


def outcomes(compared: Compared, runs: Sequence[Run]) -> None:
    """The results: per setting if any has several seeds, or per run."""
    st.subheader("Results", anchor=False)
    units = ["Settings", "Runs"] if len(compared.rows) < len(runs) or compared.of_sweep else []
    unit = units and st.segmented_control(
        "One row per", units, default=units[0], required=True, key="compare_unit", label_visibility="collapsed"
    )
    if unit == "Settings":
        setting_table(compared)
    else:
        measures(runs, results(runs, compared.summaries))


def measures(runs: Sequence[Run], found: Sequence[Result]) -> None:
    rows = []
    for run, name, row in zip(runs, run_names(runs), found, strict=True):
        rows.append(
            {
                "Run": name,
                "Status": row.status,
                "Weights": parts.weights_text(run),
                "Seed": row.seed,
                "Test accuracy": parts.hundred(row.test and row.test.value),
                "95 % interval (test)": span(row.test),
                "n test": row.test.n if row.test else None,
                "Test macro-F1": parts.hundred(row.test_macro_f1),
                "Best valid": parts.hundred(row.best_valid and row.best_valid.value),
                "95 % interval (valid)": span(row.best_valid),
                "n valid": row.best_valid.n if row.best_valid else None,
                "Best step": row.best_step,
                "Last valid": parts.hundred(row.last_valid and row.last_valid.value),
                "Trainable": row.trainable,
                "Run time (s)": row.seconds,
            }
        )
    whole = ["n test", "n valid", "Best step", "Trainable"]
    share = st.column_config.NumberColumn(format="%.1f %%")
    with parts.desk("runs"):
        st.dataframe(
            pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64")),
            hide_index=True,
            placeholder="–",
            height="content" if len(rows) <= 12 else 460,
            column_config={
                "Run": st.column_config.TextColumn(pinned=True),
                "Test accuracy": share,
                "Test macro-F1": share,
                "Best valid": share,
                "Last valid": share,
                "Trainable": st.column_config.NumberColumn(format="localized"),
                "Run time (s)": st.column_config.NumberColumn(format="%.0f"),
            },
            alt="Results of the compared runs",
        )
    with parts.phone("runs"):
        st.markdown(parts.listed(run_line(name, row) for name, row in zip(run_names(runs), found, strict=True)))


def run_line(name: str, row: Result) -> str:
    reached = f"{parts.percent(row.test.value)} · {parts.interval(row.test)}" if row.test else "no test result"
    return f"**{parts.plain(name)}** · {reached}"


def span(proportion) -> str:
    return f"{100 * proportion.low:.1f} to {100 * proportion.high:.1f} %" if proportion else "–"


main()
