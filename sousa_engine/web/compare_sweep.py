"""Sections of the Compare page that need many runs: what matters, cost, and parts of the test split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import streamlit as st

from sousa_engine.analysis import cost, importance, rudiment_groups, scores, settings
from sousa_engine.analysis.charts.cost import Level, cost_figure, cost_info, cost_text
from sousa_engine.analysis.charts.importance import importance_figure, importance_info
from sousa_engine.analysis.charts.parallel import parallel_figure, parallel_info
from sousa_engine.analysis.charts.scores import scores_figure, scores_info
from sousa_engine.analysis.charts.slices import slice_figure, slice_info
from sousa_engine.analysis.settings import SettingAxis
from sousa_engine.analysis.sweeps import TrialRow
from sousa_engine.core.records import ClipScore
from sousa_engine.web import parts
from sousa_engine.web.compare_parts import Compared

# What matters


def axes(compared: Compared) -> None:
    rows = compared.rows
    found = settings.setting_axes(rows)
    if not found:
        st.caption("No axis of these settings has two values.")
        return
    split = st.segmented_control(
        "Accuracy", ["valid", "test"], default="valid", required=True, key="compare_axes_split",
        help="Valid: best epoch, used to choose settings. Test: evaluated once, at the end.",
    )  # fmt: skip
    reached = [settings.reached(row, compared.summaries, split) for row in rows]
    means = [settings.mean(values) for values in reached]
    counted = sum(mean is not None for mean in means)
    said = f"{counted} of {len(rows)} settings have a finished run; each value is the mean over finished seeds."
    if counted < len(rows):
        said += f" Left out: {_reasons([row for row, mean in zip(rows, means, strict=True) if mean is None])}."
    st.caption(said)
    if not counted:
        return
    name = f"{split} accuracy"
    with parts.desk("parallel"):
        figure = parallel_figure(parallel_info(found, means, name))
        st.plotly_chart(figure, key="compare_parallel", alt="Settings as lines through their values")
        st.caption("Drag along an axis to select a range; drag an axis by its name to move it.")
    with parts.phone("parallel"):
        st.markdown(parts.listed(_ranked(rows, means)))
    st.markdown("**How much each axis matters**")
    _importance(found, reached)
    st.markdown("**Each axis separately**")
    columns = st.columns(min(3, max(2, len(found))))
    labels = [row.label for row in rows]
    for i, axis in enumerate(found):
        with columns[i % len(columns)]:
            figure = slice_figure(slice_info(axis, labels, means, name))
            st.plotly_chart(figure, key=f"compare_slice_{axis.field}", alt=f"{name} over {axis.name}")
    st.caption("One dot per setting; the bar is the mean of all settings with that value.")


@st.cache_data(max_entries=64, show_spinner="Estimating importance …")
def _weighed(found: Sequence[SettingAxis], reached: Sequence[Sequence[float]]) -> importance.Importance:
    return importance.importance(found, reached)


def _importance(found: Sequence[SettingAxis], reached: Sequence[Sequence[float]]) -> None:
    weighed = _weighed(found, reached)
    if weighed.reason:
        st.caption(weighed.reason)
        return
    st.plotly_chart(importance_figure(importance_info(weighed)), key="compare_importance", alt="Importance of the axes")
    st.caption(weighed.sentence)


def _ranked(rows: Sequence[TrialRow], means: Sequence[float | None]) -> list[str]:
    order = sorted((i for i, mean in enumerate(means) if mean is not None), key=lambda i: -(means[i] or 0))
    return [f"{parts.percent(means[i])} · {parts.plain(rows[i].label)}" for i in order]


def _reasons(rows: Sequence[TrialRow]) -> str:
    """`2 pruned, 1 failed, 3 not finished`."""
    kinds = Counter(
        "pruned" if row.is_pruned else "failed" if row.statuses["failed"] + row.statuses["lost"] else "not finished"
        for row in rows
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


# Cost


def costs(compared: Compared) -> None:
    measure = st.segmented_control(
        "Cost", list(cost.MEASURES), default="trainable", required=True, key="compare_cost",
        format_func=cost.MEASURES.__getitem__,
    )  # fmt: skip
    points = cost.cost_points(compared.rows, measure)
    if not points:
        st.caption(f"No finished run has both a test result and a value for {cost.MEASURES[measure].lower()}.")
        return
    known = compared.baselines.baselines if compared.baselines else ()
    info = cost_info(points, measure, [Level(one.short, one.accuracy.value) for one in known])
    with parts.desk("cost"):
        st.plotly_chart(cost_figure(info), key="compare_cost_chart", alt="Accuracy against cost")
    with parts.phone("cost"):
        st.plotly_chart(cost_figure(info, names=False), key="compare_cost_phone", alt="Accuracy against cost")
        st.markdown("**The frontier**")
        frontier = [point for point in points if point.on_frontier]
        st.markdown(
            parts.listed(
                f"{parts.percent(point.score.value)} · {cost_text(point.cost, measure)} · {parts.plain(point.name)}"
                for point in frontier
            )
        )
    said = [
        f"n = {_ns(point.score.n for point in points)} test clips. On the frontier, no cheaper setting is as accurate."
    ]
    if missing := len(compared.rows) - len(points):
        said.append(f"{missing} {'setting has' if missing == 1 else 'settings have'} no test result or no cost value.")
    if any(point.is_control for point in points):
        said.append("Random weights are a control and are never on the frontier.")
    if info.levels:
        said.append(
            "Dashed lines: baselines on the same clips"
            + ("." if len(info.levels) == len(known) else "; the others are far lower.")
        )
    if measure == "peak_memory_mib":
        said.append("This is the memory of the trainer process, not of the accelerator.")
    if others := cost.other_conditions(compared.rows, measure):
        said.append(others)
    st.caption(" ".join(said))


# Scores


def parts_of_the_test(compared: Compared) -> None:
    with parts.open_store() as store:
        asked = {row.number: store.runs.clip_scores([run.id for run in row.runs], "test") for row in compared.rows}
    rows = [row for row in compared.rows if asked[row.number]]
    if not rows:
        st.caption("No run has test predictions yet.")
        return
    kinds = {row.number: _slicings(row) for row in rows}
    names = list(dict.fromkeys(kind.name for found in kinds.values() for kind in found))
    part = st.segmented_control(
        "Parts of the test split", ["Rudiment groups", "Classes", *names], default="Rudiment groups", required=True,
        key="compare_parts", wrap=True,
    )  # fmt: skip
    found = {row.number: _scored(asked[row.number], part, kinds[row.number]) for row in rows}
    found = {number: by_group for number, by_group in found.items() if by_group}
    drawn = [(row.label, found[row.number]) for row in compared.shown if row.number in found]
    level = _level(compared, part, kinds)
    if drawn:
        figure = scores_figure(scores_info(drawn, intervals=part != "Classes", level=level))
        with parts.desk("scores"):
            st.plotly_chart(figure, key="compare_scores", alt=f"Test accuracy by {part.lower()}")
            if level:
                st.caption(f"Vertical marks: the {level[0]} baseline on the same clips.")
    with parts.desk("score-table"):
        _score_table(rows, found)
    with parts.phone("scores"):
        st.markdown(parts.listed(_score_lines(drawn), None))
    st.caption(" ".join(_said_of(part, names, rows, asked)))


def _level(
    compared: Compared, part: str, kinds: Mapping[int, Sequence[scores.Slicing]]
) -> tuple[str, Mapping[str, scores.Score]] | None:
    """The best baseline on the same clips, and its scores for this part."""
    known = compared.baselines
    if known is None:
        return None
    best = max(known.baselines, key=lambda one: one.right)
    clips = [ClipScore(p.clip_id, p.label, int(p.predicted == p.label), 1) for p in known.predictions(best.name)]
    return best.short, _scored(clips, part, next(iter(kinds.values())))


def _slicings(row: TrialRow) -> tuple[scores.Slicing, ...]:
    data = row.runs[0].config.data
    return scores.slicings(data.dataset, data.clip_s)


def _scored(clips: Sequence[ClipScore], part: str, kinds: Sequence[scores.Slicing]) -> dict[str, scores.Score]:
    if part == "Rudiment groups":
        return scores.group_scores(clips)
    if part == "Classes":
        return scores.class_scores(clips)
    return next((scores.slice_scores(clips, kind) for kind in kinds if kind.name == part), {})


def _score_table(rows: Sequence[TrialRow], found: Mapping[int, Mapping[str, scores.Score]]) -> None:
    info = scores_info([(row.label, found[row.number]) for row in rows if row.number in found])
    table = pd.DataFrame(
        [
            {"Setting": series.name}
            | {
                group: None if score is None else 100 * score.value
                for group, score in zip(info.groups, series.scores, strict=True)
            }
            for series in info.series
        ]
    )
    share = st.column_config.NumberColumn(format="%.1f %%")
    st.dataframe(
        table,
        hide_index=True,
        placeholder="–",
        height="content" if len(table) <= 12 else 460,
        column_config={"Setting": st.column_config.TextColumn(pinned=True), **dict.fromkeys(info.groups, share)},
        alt="Test accuracy by part of the test split",
    )


def _score_lines(drawn: Sequence[tuple[str, Mapping[str, scores.Score]]]) -> list[str]:
    info = scores_info(drawn)
    return [
        f"**{group}**: "
        + ", ".join(
            f"{parts.percent(series.scores[i].value)} {parts.plain(series.name)}"  # pyright: ignore[reportOptionalMemberAccess]
            for series in info.series
            if series.scores[i] is not None
        )
        for i, group in enumerate(info.groups)
    ]


def _said_of(
    part: str, slices: Sequence[str], rows: Sequence[TrialRow], asked: Mapping[int, Sequence[ClipScore]]
) -> list[str]:
    said = ["n = clips in that part; each dot is the mean over the seeds of a setting."]
    if part == "Rudiment groups":
        said.append(
            f"{rudiment_groups.TWINS.capitalize()}: rudiments whose strokes and accents fall at the same times, so "
            "that only the timbre of the hands distinguishes them."
        )
    if part == "Tempo":
        said.append("Each rudiment has its usual tempo, so the slices contain different classes.")
    if part == "Classes":
        said.append("With so few clips per class the values are uncertain: hover a dot for its interval.")
    if not slices:
        said.append("Only the embedded data sets can be split by tempo, player or noise.")
    if len({tuple(clip.clip_id for clip in asked[row.number]) for row in rows}) > 1:
        said.append("The settings were not tested on the same clips.")
    return said


def _ns(numbers: Iterable[int]) -> str:
    """200, or 200 to 480."""
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
