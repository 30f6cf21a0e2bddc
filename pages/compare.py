"""Compare: two or more runs side by side. The runs stand in the address: /compare?run=A&run=B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from sousa_engine.analysis.compare import (
    Conclusion,
    Result,
    conclude,
    config_differences,
    paired_sentence,
    results,
    setting_names,
)
from sousa_engine.analysis.confusion import confusion
from sousa_engine.analysis.curves import line
from sousa_engine.analysis.significance import paired
from sousa_engine.analysis.verdict import ENOUGH_SEEDS, LEVEL, MARGIN, TIE, Outcome, Pair, points
from sousa_engine.charts.confusion import confusion_figure, confusion_info
from sousa_engine.charts.curves import curves_figure, curves_info
from sousa_engine.records import Prediction, Run
from sousa_engine.store import Store
from sousa_engine.web import parts
from sousa_engine.web.components.live_chart import Panel, live_chart

MOST = 40  # 8 settings of 5 seeds
DRAWN = 8  # runs with curves and a matrix of their own; the verdict and the tables take all
CHOICE = "compare_choice"


def main() -> None:
    st.title("Compare")
    with parts.open_store() as store:
        every = store.runs()
        if len(every) < 2:
            invite(len(every))
            return
        runs = choose(every)
        if len(runs) < 2:
            st.info("Choose two runs or more, here or by ticking them on the page Runs.", icon=":material/info:")
            return
        found = results(runs, store.summaries([run.id for run in runs]))
        predictions = {run.id: store.predictions(run.id, "test") for run in runs}
        conclusion(runs, found, predictions)
        measures(runs, found)
        curves(store, runs[:DRAWN])
    differences(runs)
    matrices(runs[:DRAWN], predictions)
    if len(runs) > DRAWN:
        st.caption(f"Curves and matrices: the first {DRAWN} of {len(runs)} runs.")


def invite(count: int) -> None:
    st.info("Comparing takes two runs; " + ("there is one." if count else "there is none."), icon=":material/info:")
    st.page_link(parts.page_path("launch"), label="Launch a training", icon=":material/rocket_launch:")


def choose(every: Sequence[Run]) -> list[Run]:
    """The picker and the address hold the same runs; the address wins when it changes."""
    known = {run.id: run for run in every}
    asked = list(dict.fromkeys(st.query_params.get_all("run")))
    if st.session_state.get("compare_address") != asked:
        st.session_state[CHOICE] = [run_id for run_id in asked if run_id in known][:MOST]
        strangers = [run_id for run_id in asked if run_id not in known]
        if strangers:
            st.warning(parts.plain(f"No run has the id {', '.join(strangers)}."), icon=":material/help:")
    picked = st.multiselect(
        "Runs", list(known), format_func=lambda run_id: parts.run_label(known[run_id]), key=CHOICE,
        max_selections=MOST, placeholder=f"2 to {MOST} runs",
    )  # fmt: skip
    if picked != st.query_params.get_all("run"):
        st.query_params["run"] = picked
    st.session_state["compare_address"] = picked
    return [known[run_id] for run_id in picked]


def names_of(runs: Sequence[Run]) -> list[str]:
    """Titles; where two are alike the seed is added, and where that is not enough the id's end."""
    names = [run.title for run in runs]
    for mark in (lambda run: f"seed {run.config.seed}", lambda run: run.id[-4:]):
        alike = {name for name, count in Counter(names).items() if count > 1}
        names = [f"{name} · {mark(run)}" if name in alike else name for run, name in zip(runs, names, strict=True)]
    return names


def conclusion(runs: Sequence[Run], found: Sequence[Result], predictions: dict[str, tuple[Prediction, ...]]) -> None:
    counts = [len(predictions[run.id]) for run in runs]
    said = concluded(tuple(found), counts, predictions, setting_names(runs))
    with st.container(border=True):
        st.markdown(f":material/balance: **{parts.plain(said.verdict)}**")
        for note in said.notes:
            st.markdown(note)
        measured = [(name, predictions[run.id]) for run, name in zip(runs, names_of(runs), strict=True)]
        measured = [(name, found) for name, found in measured if found]
        if len(measured) == 2:
            (first, of_first), (second, of_second) = measured
            difference = paired(of_first, of_second)
            if difference:
                st.markdown(parts.plain(paired_sentence(first, second, difference)))
        if said.pairs:
            with st.expander(f"How it was found: {len(said.pairs)} {'pair' if len(said.pairs) == 1 else 'pairs'}"):
                evidence(said)


@st.cache_data(max_entries=32, show_spinner="Comparing clip by clip ...")
def concluded(
    found: tuple[Result, ...],
    counts: list[int],
    _predictions: dict[str, tuple[Prediction, ...]],
    _names: dict[str, str],
) -> Conclusion:
    """conclude(), kept over reruns of the page. A run's predictions come all at once and never change."""
    return conclude(found, _predictions, names=_names)


def evidence(said: Conclusion) -> None:
    """The settings and every pair of them, as the verdict saw them."""
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Setting": row.name,
                    "Seeds": row.seeds,
                    "Mean": hundred(row.accuracy.value),
                    "95 % of clips": span(row.accuracy),
                    "Lowest seed": hundred(row.lowest),
                    "Highest seed": hundred(row.highest),
                    "n test": row.accuracy.n,
                }
                for row in said.order
            ]
        ),
        hide_index=True,
        column_config=dict.fromkeys(
            ("Mean", "Lowest seed", "Highest seed"), st.column_config.NumberColumn(format="%.1f %%")
        ),
        alt="Settings by their mean test accuracy",
    )
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "A": pair.first,
                    "B": pair.second,
                    "Outcome": outcome(pair),
                    "A − B, points": points(pair.difference, plus=True),
                    "95 % interval": points_span(pair),
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
    st.caption(
        "Means have Wilson's interval for the choice of clips; pairs a two-level paired bootstrap: clips are resampled "
        "together for both settings, seeds within each, with Student's t for how few they are. An interval is for its "
        f"pair alone, p is adjusted for all pairs (Holm). A setting beats another with p below {LEVEL:g} and "
        f"{100 * MARGIN:g} point or more; they are tied where the interval lies within {100 * TIE:g} points of zero. "
        f"Both take {ENOUGH_SEEDS} seeds of each setting."
    )


def points_span(pair: Pair) -> str:
    return "–" if pair.low is None or pair.high is None else f"{points(pair.low)} to {points(pair.high)}"


def outcome(pair: Pair) -> str:
    """`not enough evidence (+2 seeds would tell)`."""
    more = []
    if pair.more_seeds:
        more.append(f"+{pair.more_seeds} {'seed' if pair.more_seeds == 1 else 'seeds'}")
    if pair.more_clips:
        more.append(f"+{pair.more_clips:,} clips")
    arrow = "A beats B" if pair.outcome is Outcome.BEATS else pair.outcome.value
    return f"{arrow} ({', '.join(more)} would tell)" if more else arrow


def measures(runs: Sequence[Run], found: Sequence[Result]) -> None:
    st.subheader("Results", anchor=False)
    rows = []
    for run, name, row in zip(runs, names_of(runs), found, strict=True):
        rows.append(
            {
                "Run": name,
                "Status": row.status,
                "Weights": parts.weights_text(run),
                "Seed": row.seed,
                "Test accuracy": hundred(row.test and row.test.value),
                "95 % of test": span(row.test),
                "n test": row.test.n if row.test else None,
                "Test macro-F1": hundred(row.test_macro_f1),
                "Best valid": hundred(row.best_valid and row.best_valid.value),
                "95 % of valid": span(row.best_valid),
                "n valid": row.best_valid.n if row.best_valid else None,
                "Best step": row.best_step,
                "Last valid": hundred(row.last_valid and row.last_valid.value),
                "Trainable": row.trainable,
                "Seconds": row.seconds,
            }
        )
    whole = ["n test", "n valid", "Best step", "Trainable"]
    share = st.column_config.NumberColumn(format="%.1f %%")
    st.dataframe(
        pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64")),
        hide_index=True,
        placeholder="–",
        column_config={
            "Run": st.column_config.TextColumn(pinned=True),
            "Test accuracy": share,
            "Test macro-F1": share,
            "Best valid": share,
            "Last valid": share,
            "Trainable": st.column_config.NumberColumn(format="localized"),
            "Seconds": st.column_config.NumberColumn(format="%.0f"),
        },
        alt="Results of the compared runs",
    )


def hundred(share: float | None) -> float | None:
    return None if share is None else 100 * share


def span(proportion) -> str:
    return f"{100 * proportion.low:.1f} to {100 * proportion.high:.1f} %" if proportion else "–"


def curves(store: Store, runs: Sequence[Run]) -> None:
    st.subheader("Curves", anchor=False)
    metrics = sorted(
        {metric for run in runs for metric in store.metric_names(run.id) if not metric.startswith("test/")}
    )
    if not metrics:
        st.caption("No step was recorded yet.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        start = "valid/accuracy" if "valid/accuracy" in metrics else metrics[0]
        metric = st.selectbox("Metric", metrics, index=metrics.index(start), key="compare_metric", width=240)
        if any(not run.status.is_over for run in runs):
            live = True
        else:
            live = False
            smoothing = st.slider(
                "Smoothing",
                0.0,
                0.99,
                0.0,
                0.01,
                key="compare_smoothing",
                width=240,
                disabled=not metric.startswith("train/"),
            )
            log = st.toggle("Log scale", key="compare_log", disabled=metric.endswith(("accuracy", "macro_f1")))
    if live:
        panel = Panel(title=metric, metrics=(metric,), percent=metric.endswith(("accuracy", "macro_f1")))
        live_chart(runs, [panel], key="compare_live", names=names_of(runs))
        return
    lines = [
        line(name, store.curve(run.id, metric), smoothing if metric.startswith("train/") else 0.0)
        for run, name in zip(runs, names_of(runs), strict=True)
    ]
    st.plotly_chart(curves_figure(curves_info(metric, lines, log)), key="compare_curves", alt=f"{metric} over steps")


def differences(runs: Sequence[Run]) -> None:
    st.subheader("What differs in the settings", anchor=False)
    found = config_differences(runs)
    if not found:
        st.caption("Nothing: the settings are the same, seed included.")
        return
    table = pd.DataFrame([(d.field, *d.values) for d in found], columns=["Field", *names_of(runs)])
    st.dataframe(
        table,
        hide_index=True,
        column_config={"Field": st.column_config.TextColumn(pinned=True)},
        alt="Settings that differ between the runs",
    )


def matrices(runs: Sequence[Run], predictions: dict[str, tuple[Prediction, ...]]) -> None:
    st.subheader("Confusion on the test split", anchor=False)
    measured = [(run, name) for run, name in zip(runs, names_of(runs), strict=True) if predictions[run.id]]
    if not measured:
        st.caption("No run has test predictions yet.")
        return
    classes = sorted({c for run, _ in measured for p in predictions[run.id] for c in (p.label, p.predicted)})
    columns = st.columns(min(3, max(2, len(measured))))
    for i, (run, name) in enumerate(measured):
        matrix = confusion(predictions[run.id], classes)
        with columns[i % len(columns)]:
            st.markdown(f"**{parts.plain(name)}** · {matrix.right:,} of {matrix.n:,} clips right")
            figure = confusion_figure(confusion_info(matrix), labels=False)
            st.plotly_chart(figure, key=f"confusion-{run.id}", alt=f"Confusion matrix of {name}")
    st.caption(
        "Rows: what was played; columns: what it was taken for. Petrol is recognised, brick is mistaken; "
        "point at a cell for its names and clips."
    )


main()
