"""Sections of the Compare page: results, curves, differences, confusion. The others are in compare_sweep.py."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from sousa_engine.analysis import cost, rudiment_groups, settings
from sousa_engine.analysis.baselines import Baselines
from sousa_engine.analysis.charts import template
from sousa_engine.analysis.charts.confusion import (
    confusion_difference_figure,
    confusion_difference_info,
    confusion_figure,
    confusion_info,
)
from sousa_engine.analysis.charts.curves import curves_figure, curves_info, is_share
from sousa_engine.analysis.confusion import Confusion, changes, confusion, difference
from sousa_engine.analysis.curves import AXES, Line, placed, seed_line
from sousa_engine.analysis.settings import AgainstBase, Summaries
from sousa_engine.analysis.sweeps import TrialRow
from sousa_engine.core.records import Prediction, Run
from sousa_engine.store import Store
from sousa_engine.web import parts
from sousa_engine.web.components.live_chart import Panel, live_chart

MOST_LIVE = 8  # runs in a live chart
SAME, OTHER = "color: rgba(128,128,128,0.8)", "background-color: rgba(27,156,144,0.18)"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The compared runs and settings. rows: all settings; shown: those with a colour, a curve and a matrix.

    baselines: computed on the same clips that all settings were tested on; None if not computed.
    """

    rows: tuple[TrialRow, ...]
    shown: tuple[TrialRow, ...]
    summaries: Summaries
    predictions: Mapping[str, Sequence[Prediction]]  # run id -> its test split, for the shown runs
    of_sweep: bool
    baselines: Baselines | None = None

    @property
    def has_axes(self) -> bool:
        """Whether there are enough runs to estimate which axis matters."""
        return settings.has_axes(self.rows, self.of_sweep)

    @property
    def shown_runs(self) -> list[Run]:
        return [run for row in self.shown for run in row.runs]


def setting_table(compared: Compared) -> None:
    """All settings with their seeds; phones get a list."""
    rows = [_results_of(row, compared.summaries) for row in compared.rows]
    share, whole = st.column_config.NumberColumn(format="%.1f %%"), st.column_config.NumberColumn(format="localized")
    with parts.desk("settings"):
        st.dataframe(
            pd.DataFrame(rows).astype(dict.fromkeys(("n test", "n valid", "Trainable"), "Int64")),
            hide_index=True,
            placeholder="–",
            height="content" if len(rows) <= 12 else 460,
            column_config={
                "Setting": st.column_config.TextColumn(pinned=True),
                **dict.fromkeys(("Test accuracy", "Lowest", "Highest", "Best valid"), share),
                "Trainable": whole,
                "Training time (s)": st.column_config.NumberColumn(format="%.0f"),
                "Peak memory (MiB)": st.column_config.NumberColumn(format="%.0f"),
            },
            alt="Results of the compared settings, mean over seeds",
        )
    with parts.phone("settings"):
        st.markdown(parts.listed(_result_line(row) for row in compared.rows))
    st.caption(
        "Means over finished seeds (valid: over all seeds with a value). The intervals reflect the sample of test "
        "clips, not variation between seeds." + (" Ordered by best valid accuracy." if compared.of_sweep else "")
    )


# Curves


def curves(compared: Compared) -> None:
    runs = compared.shown_runs
    metrics = sorted(
        {name for run in runs for name in compared.summaries.get(run.id, {}) if not name.startswith("test/")}
    )
    if not metrics:
        st.caption("No step has been recorded yet.")
        return
    alive = sum(not run.status.is_over for run in runs)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        start = "valid/accuracy" if "valid/accuracy" in metrics else metrics[0]
        metric = st.selectbox("Metric", metrics, index=metrics.index(start), key="compare_metric", width=200)
        can_live = alive > 0 and len(runs) <= MOST_LIVE
        live = can_live and st.toggle("Live", True, key="compare_is_live", help="Follow each run live, over steps.")
        if not live:
            axis = st.segmented_control("Over", AXES, default="step", required=True, key="compare_axis")
            smoothing = st.slider(
                "Smoothing", 0.0, 0.99, 0.0, 0.01, key="compare_smoothing", width=180,
                disabled=not metric.startswith("train/"), help="Exponential moving average; for train metrics only.",
            )  # fmt: skip
            log = st.toggle("Log scale", key="compare_log", disabled=is_share(metric))
            seeded = any(len(row.runs) > 1 for row in compared.shown)
            each_run = seeded and st.toggle(
                "Each run", key="compare_each_run", help="One line per run instead of a band."
            )
    if live:
        panel = Panel(title=metric, metrics=(metric,), percent=is_share(metric))
        names = [_run_name(row, run) for row in compared.shown for run in row.runs]
        live_chart(runs, [panel], key="compare_live", names=names)
        return
    with parts.open_store() as store:
        weight = smoothing if metric.startswith("train/") else 0.0
        lines, lost = lines_of(store, compared.shown, metric, axis, weight, each_run)
    info = curves_info(metric, lines, log, axis)
    with parts.desk("curves"):
        st.plotly_chart(curves_figure(info), key="compare_curves", alt=f"{metric} over {axis}")
    with parts.phone("curves"):
        # A legend with long names would leave no room for the lines.
        figure = curves_figure(info, height=320, legend=False)
        st.plotly_chart(figure, key="compare_curves_phone", alt=f"{metric} over {axis}")
        legend({line.group: line.label for line in info.lines})
    said = []
    if any(line.low for line in lines):
        said.append(
            "Line: mean over the seeds of a setting that got this far. Band: from the lowest to the highest seed."
        )
    if lost:
        said.append(f"Left out: {lost} {'run' if lost == 1 else 'runs'} without recorded {axis}.")
    if alive:
        said.append("Some runs are still active; these curves are redrawn when one of them ends.")
    if said:
        st.caption(" ".join(said))


def legend(names: Mapping[int, str]) -> None:
    """A legend: the colour and name of each series. names: number of the series -> its name."""
    entries = (
        f"<li style='display:flex;gap:.5rem'><span style='color:{template.series(number)}'>●</span>"
        f"<span>{html.escape(name)}</span></li>"
        for number, name in names.items()
    )
    st.html(f"<ul style='list-style:none;margin:0;padding:0;font-size:.9rem'>{''.join(entries)}</ul>")


def lines_of(
    store: Store, rows: Sequence[TrialRow], metric: str, axis: str, smoothing: float, each_run: bool
) -> tuple[list[Line], int]:
    """(one line per setting or per run; the number of runs that could not be placed on the axis)."""
    lines, lost = [], 0
    for group, row in enumerate(rows):
        seeds = []
        for run in row.runs:
            curve = store.metrics.curve(run.id, metric)
            if not curve.steps:
                continue
            moments = store.metrics.moments(run.id, metric, curve.steps) if axis == "minutes" else None
            seed = placed(run, curve, axis, moments)
            lost += seed is None
            if seed is not None:
                seeds.append(seed)
        together = [[seed] for seed in seeds] if each_run else [seeds] if seeds else []
        lines += [seed_line(row.label, some, smoothing, group) for some in together]
    return lines, lost


# What differs


def differences(compared: Compared) -> None:
    rows = compared.rows
    if len(rows) == 1:
        seeds = ", ".join(str(run.config.seed) for run in rows[0].runs)
        alike = "only the seeds differ" if len(rows[0].runs) > 1 else "only the names differ, even the seed is the same"
        st.caption(f"These runs have the same settings: {alike} ({seeds}).")
        return
    first = rows.index(compared.shown[0])
    base = st.selectbox(
        "Base", range(len(rows)), index=first, format_func=lambda i: rows[i].label, key="compare_base", width=320
    )
    found = settings.against_base(rows, base)
    table, css = _difference_table(rows, base, found)
    with parts.desk("differences"):
        if len(rows) <= 8:  # few settings are columns, many are rows
            table, css = table.T.rename_axis("Field"), css.T
        st.dataframe(
            table.style.apply(lambda _: css, axis=None),
            height="content" if len(table) <= 14 else 460,
            alt="Settings that differ from the base",
        )
        st.caption("Highlighted cells differ from the base.")
    with parts.phone("differences"):
        st.markdown(parts.listed([_difference_line(rows, i, base, found) for i in range(len(rows)) if i != base]))
    st.caption(
        "Only fields that differ are listed. Accuracy differences are between means over seeds, in percentage points; "
        "see the verdict for what they support."
    )


def _difference_table(rows: Sequence[TrialRow], base: int, found: AgainstBase) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(texts, styles), one row per setting: first the results, then the fields that differ."""
    names = [f"{row.label} (base)" if i == base else row.label for i, row in enumerate(rows)]
    texts, css = {}, {}
    for split, title in (("test", "Test accuracy"), ("valid", "Best valid")):
        texts[title] = [
            parts.percent(row.mean_test if split == "test" else row.mean_valid)
            + ("" if i == base else _points(settings.lead(row, rows[base], split)))
            for i, row in enumerate(rows)
        ]
        css[title] = [""] * len(rows)
    for j, field in enumerate(found.fields):
        texts[field] = [text[j] for text in found.texts]
        css[field] = ["" if i == base else SAME if same[j] else OTHER for i, same in enumerate(found.is_base)]
    return pd.DataFrame(texts, index=names), pd.DataFrame(css, index=names)


def _difference_line(rows: Sequence[TrialRow], i: int, base: int, found: AgainstBase) -> str:
    other = [
        f"{field} {ours}, not {theirs}"
        for field, ours, theirs, same in zip(
            found.fields, found.texts[i], found.texts[base], found.is_base[i], strict=True
        )
        if not same
    ]
    lead = _points(settings.lead(rows[i], rows[base], "test")) or " (no test result)"
    return f"**{parts.plain(rows[i].label)}**{lead}: {parts.plain('; '.join(other))}"


# Confusion


def matrices(compared: Compared) -> None:
    measured = [(row, [p for run in row.runs for p in compared.predictions.get(run.id, ())]) for row in compared.shown]
    measured = [(row, found) for row, found in measured if found]
    if not measured:
        st.caption("No run has test predictions yet.")
        return
    classes = rudiment_groups.by_group({c for _, found in measured for p in found for c in (p.label, p.predicted)})
    blocks = rudiment_groups.blocks(classes)
    made = {row.label: confusion(found, classes) for row, found in measured}
    columns = st.columns(min(3, max(2, len(made))))
    for i, (name, matrix) in enumerate(made.items()):
        with columns[i % len(columns)]:
            seeds = sum(bool(compared.predictions.get(run.id)) for run in measured[i][0].runs)
            added = f", {seeds} seeds combined" if seeds > 1 else ""
            st.markdown(f"**{parts.plain(name)}** · {matrix.right:,} of {matrix.n:,} clips correct{added}")
            figure = confusion_figure(confusion_info(matrix, blocks), labels=False)
            st.plotly_chart(figure, key=f"confusion-{measured[i][0].runs[0].id}", alt=f"Confusion matrix of {name}")
    st.caption(
        "Rows: true class; columns: predicted class. Teal = correct, red = wrong; hover a cell for details."
        + (" Rudiment groups are kept together." if blocks else "")
    )
    if len(made) > 1:
        _difference_of_two(made, blocks)


def _difference_of_two(made: Mapping[str, Confusion], blocks: Sequence[tuple[str, int]]) -> None:
    st.markdown("**Difference between two settings**")
    names = list(made)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        first = st.selectbox("From", names, index=0, key="compare_from", width=320)
        second = st.selectbox("To", names, index=1, key="compare_to", width=320)
    if first == second:
        st.caption("Choose two different settings.")
        return
    found = difference(made[first], made[second])
    left, right = st.columns([3, 2], gap="medium")
    with left:
        info = confusion_difference_info(found, first, second, blocks)
        figure = confusion_difference_figure(info, labels=False)
        st.plotly_chart(figure, key="compare_difference", alt=f"Confusion matrix of {second} minus {first}")
        st.caption(
            f"Teal: {parts.plain(second)} is better (more clips correct, or fewer of this error); red: worse. "
            f"The darkest cell is {100 * info.largest:.0f} percentage points of its row."
        )
    with right:
        st.markdown("Errors that changed most")
        lines = [
            f"{parts.plain(c.label)} predicted as {parts.plain(c.predicted)}: {_of(c.first)} → {_of(c.second)} "
            f"{':green[fewer]' if c.gain > 0 else ':red[more]'}"
            for c in changes(found)
        ]
        st.markdown(parts.listed(lines) if lines else "None.")


# Wording


def _results_of(row: TrialRow, summaries: Summaries) -> dict[str, object]:
    interval = row.test_interval
    valid = [found for run in row.runs if (found := summaries.get(run.id, {}).get("valid/accuracy"))]
    seconds, memory = (
        settings.mean([c for run in row.runs if (c := cost.cost_of(run, measure)) is not None])
        for measure in ("train_s", "peak_memory_mib")
    )
    return {
        "Setting": row.label,
        "Runs": ", ".join(f"{count} {status}" for status, count in row.statuses.items()),
        "Weights": parts.weights_text(row.runs[0]),
        "Test accuracy": parts.hundred(row.mean_test),
        "Lowest": parts.hundred(min(row.test, default=None)),
        "Highest": parts.hundred(max(row.test, default=None)),
        "95 % interval (test)": f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %" if interval else "–",
        "n test": row.clips,
        "Best valid": parts.hundred(row.mean_valid),
        "n valid": valid[0].n if valid else None,
        "Trainable": row.trainable,
        "Training time (s)": seconds,
        "Peak memory (MiB)": memory,
    }


def _result_line(row: TrialRow) -> str:
    seeds = f"{len(row.runs)} {'seed' if len(row.runs) == 1 else 'seeds'}"
    if row.mean_test is None:
        return f"**{parts.plain(row.label)}** · no test result · {seeds}"
    return (
        f"**{parts.plain(row.label)}** · {parts.percent(row.mean_test)} · {parts.interval(row.test_interval)} · {seeds}"
    )


def _points(lead: float | None) -> str:
    """` (+1.5)`, or an empty string if there is no measurement."""
    return "" if lead is None else f" ({100 * lead:+.1f})".replace("-", "−")


def _of(counted: tuple[int, int]) -> str:
    return f"{counted[0]} of {counted[1]}"


def _run_name(row: TrialRow, run: Run) -> str:
    return row.label if len(row.runs) == 1 else f"{row.label} · seed {run.config.seed}"
