import pytest

from sousa_engine.analysis.charts.class_accuracy import class_accuracy_figure, class_accuracy_info
from sousa_engine.analysis.charts.confusion import (
    confusion_difference_figure,
    confusion_difference_info,
    confusion_figure,
    confusion_info,
)
from sousa_engine.analysis.charts.cost import Level, cost_figure, cost_info, cost_text
from sousa_engine.analysis.charts.curves import curves_figure, curves_info
from sousa_engine.analysis.charts.importance import REST, importance_figure, importance_info
from sousa_engine.analysis.charts.parallel import parallel_figure, parallel_info
from sousa_engine.analysis.charts.scores import scores_figure, scores_info
from sousa_engine.analysis.charts.slices import slice_figure, slice_info
from sousa_engine.analysis.confusion import class_results, confusion, difference
from sousa_engine.analysis.cost import CostPoint
from sousa_engine.analysis.curves import Line
from sousa_engine.analysis.importance import Importance
from sousa_engine.analysis.scores import Score
from sousa_engine.analysis.settings import SettingAxis
from sousa_engine.core.records import Prediction


@pytest.fixture
def matrix():
    pairs = [("drag", "drag")] * 3 + [("drag", "flam")] + [("flam", "flam")] * 2
    return confusion(
        [
            Prediction(clip_id=f"c{i}", split="test", label=a, predicted=b, probability=0.9, label_probability=0.1)
            for i, (a, b) in enumerate(pairs)
        ]
    )


def test_confusion_rows_are_shares_of_their_class_and_mistakes_are_negative(matrix):
    info = confusion_info(matrix)
    assert info.shares == ((0.75, -0.25), (None, 1.0))
    assert (info.n, info.right) == (6, 5)


def test_confusion_figure_tells_counts_on_hover(matrix):
    figure = confusion_figure(confusion_info(matrix))
    assert "1 of 4 clips" in figure.data[0].text[0][1]
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_class_accuracy_starts_with_the_weakest_class(matrix):
    info = class_accuracy_info(class_results(matrix))
    assert info.labels == ("drag", "flam")
    assert info.notes == ("3 of 4 clips correct; most often predicted as flam", "2 of 2 clips correct")
    assert all(low <= value <= high for low, value, high in zip(info.low, info.values, info.high, strict=True))
    assert len(class_accuracy_figure(info).data[0].x) == 2


def test_difference_of_two_matrices_says_both_counts_and_draws_borders_between_groups(matrix):
    second = confusion([], matrix.classes)
    info = confusion_difference_info(difference(matrix, second), "A", "B")
    assert info.gains == ((None, None), (None, None)) and info.largest == 0, "no clip, no difference"
    info = confusion_difference_info(difference(matrix, matrix), "A", "B", [("drags", 1), ("flams", 1)])
    assert info.gains == ((0.0, 0.0), (None, 0.0))
    assert "A: 1 of 4<br>B: 1 of 4" in info.texts[0][1]
    figure = confusion_difference_figure(info, labels=False)
    assert figure.layout.yaxis.ticktext == ("drags", "flams") and figure.layout.yaxis.tickvals == (1.0, 2.0)
    assert sum(shape.type == "line" for shape in figure.layout.shapes) == 2


def test_curves_keep_gaps_and_tell_equal_titles_of_different_groups_apart():
    lines = [
        Line(label="a", x=(1, 2, 3), y=(1.0, None, 0.5)),
        Line(label="a", x=(1, 2), y=(1.0, 2.0)),
        Line(label="a", x=(1,), y=(2.0,), group=1),
        Line(label="empty", x=(), y=(), group=2),
    ]
    info = curves_info("train/loss", lines, log=True)
    assert [line.label for line in info.lines] == ["a", "a", "a (2)"]
    figure = curves_figure(info)
    assert figure.data[0].y == (1.0, None, 0.5) and figure.data[0].connectgaps is False
    assert figure.layout.yaxis.type == "log"
    assert [trace.showlegend for trace in figure.data] == [True, False, True], "one entry a setting"
    assert figure.data[0].line.color == figure.data[1].line.color != figure.data[2].line.color


def test_a_band_is_drawn_in_stretches_between_gaps():
    line = Line(label="a", x=(1, 2, 3, 4), y=(1, 2, None, 4), low=(0, 1, None, 3), high=(2, 3, None, 5))
    band, mean = curves_figure(curves_info("train/loss", [line], axis="epoch")).data
    assert band.x == (1, 2, 2, 1, None, 4, 4, None) and band.y == (2, 3, 1, 0, None, 5, 3, None)
    assert mean.customdata[0] == " (0 to 2)" and mean.customdata[2] == ""


def test_shares_are_drawn_in_per_cent_and_never_on_a_log_axis():
    info = curves_info("valid/accuracy", [Line(label="a", x=(1,), y=(0.5,))], log=True)
    assert info.is_share and not info.log
    assert curves_figure(info).layout.yaxis.tickformat == ".1~%"


def score(value, n=200, seeds=1):
    return Score(value=value, low=value - 0.05, high=value + 0.05, n=n, seeds=seeds)


def test_cost_chart_says_n_and_interval_and_draws_the_frontier():
    points = [
        CostPoint(name="control", cost=100, score=score(0.3), is_control=True),
        CostPoint(name="small", cost=1_000, score=score(0.5, seeds=3), is_control=False, on_frontier=True),
        CostPoint(name="worse", cost=2_000, score=score(0.4), is_control=False),
        CostPoint(name="large", cost=90_000, score=score(0.6), is_control=False, on_frontier=True),
    ]
    info = cost_info(points, "trainable")
    assert info.log and "1,000 parameters" in info.notes[1] and "n = 200, mean of 3 seeds" in info.notes[1]
    figure = cost_figure(info)
    frontier, others, named, controls = figure.data
    assert frontier.x == named.x == (1_000, 90_000) and named.text == ("small", "large")
    assert named.textposition == ("top right", "top left"), "the last name stays within the chart"
    at_the_left = cost_figure(cost_info(points[1:3], "trainable")).data[2]
    assert at_the_left.textposition == ("top right",), "a name at the left stays within it too"
    assert others.x == (2_000,) and controls.x == (100,) and "control" in controls.name
    assert not cost_info(points[1:3], "trainable").log, "twice as much is no magnitude"
    assert cost_text(200, "train_s") == "3 min 20 s" and cost_text(812.4, "peak_memory_mib") == "812 MiB"


def test_baselines_are_dashed_lines_that_do_not_squeeze_the_dots():
    points = [CostPoint(name="a", cost=1_000, score=score(0.8), is_control=False, on_frontier=True)]
    levels = [Level("onset sequence", 0.7), Level("pooled log-mel", 0.135), Level("majority class", 0.025)]
    info = cost_info(points, "trainable", levels)
    assert [level.name for level in info.levels] == ["onset sequence"], "the best always, far ones never"
    points.append(CostPoint(name="b", cost=90, score=score(0.2), is_control=False))
    info = cost_info(points, "trainable", levels)
    assert [level.value for level in info.levels] == [0.025, 0.135, 0.7]
    layout = cost_figure(info).layout
    assert [shape.y0 for shape in layout.shapes] == [0.025, 0.135, 0.7]
    assert layout.annotations[2].text == "onset sequence 70.0 %"
    near = cost_figure(cost_info(points, "trainable", [Level("x", 0.5), Level("y", 0.51)])).layout.annotations
    assert [one.yanchor for one in near] == ["top", "bottom"], "labels stand apart"
    assert not cost_info(points, "trainable").levels


def axis(field, *values):
    return SettingAxis(field=field, values=values)


def test_parallel_coordinates_leave_out_what_reached_nothing_and_count_it():
    axes = [axis("lora.targets", "core", "all", "core"), axis("training.lr", 1e-4, 1e-3, 1e-2)]
    info = parallel_info(axes, [0.5, None, 0.6], "valid accuracy")
    assert info.left_out == 1 and info.reached == (0.5, 0.6)
    targets, rate = info.axes
    assert targets.places == (0.0, 0.0) and targets.ticks == ((0.0, "core"), (1.0, "all"))
    assert rate.places == (-4.0, -2.0) and rate.ticks[0] == (-4.0, "0.0001"), "logarithmic, ticks in values"
    dimensions = parallel_figure(info).data[0].dimensions
    assert [d.label for d in dimensions] == ["targets", "lr", "valid accuracy, %"]
    assert tuple(dimensions[2]["values"]) == (50.0, 60.0)


def test_importance_bars_end_with_what_no_axis_explains():
    info = importance_info(Importance(shares=(("training.lr", 0.7), ("lora.r", 0.1)), settings=9))
    assert info.names == ("lr", "r", REST) and info.shares == pytest.approx((0.7, 0.1, 0.2))
    assert len(importance_figure(info).data[0].x) == 3


def test_a_slice_has_a_mean_for_each_listed_value_and_none_for_a_range():
    info = slice_info(axis("lora.r", 8, 8, 16, 16), ["a", "b", "c", "d"], [0.4, 0.6, 0.7, None], "valid accuracy")
    assert info.ticks == ("8", "16") and info.x == (0.0, 0.0, 1.0)
    assert info.means == ((0.0, 0.5), (1.0, 0.7)) and info.labels == ("a", "b", "c")
    drawn = axis("training.lr", *(10 ** (-i / 4) for i in range(12)))
    info = slice_info(drawn, ["x"] * 12, [0.5] * 12, "valid accuracy")
    assert info.ticks == () == info.means and info.log and info.x[0] == 1.0
    shown = slice_figure(info).layout.xaxis
    assert shown.type == "log" and {"0.002", "0.1", "1"} <= set(shown.ticktext), "plain numbers, no 100µ"


def test_scores_name_n_once_where_all_were_asked_the_same_clips():
    found = [("a", {"roll": score(0.5, n=75), "flam": score(0.2, n=55)}), ("b", {"roll": score(0.6, n=80)})]
    info = scores_info(found)
    assert info.groups == ("roll", "flam · n 55")
    assert info.series[1].scores == (found[1][1]["roll"], None), "a part that was not asked is a gap"
    figure = scores_figure(info)
    assert figure.data[0].error_x.array == pytest.approx((0.05, 0.05)) and len(figure.data[1].x) == 1
    assert figure.data[0].y[0] < figure.data[1].y[0], "dots of one part lie below each other"
    flat = scores_figure(scores_info(found, intervals=False))
    assert flat.data[0].y[0] == flat.data[1].y[0] and flat.data[0].error_x.array is None
    dashes = scores_figure(scores_info(found, level=("onset sequence", {"roll": score(0.4, n=75)}))).data[0]
    assert dashes.name == "onset sequence" and dashes.x == (0.4,) and dashes.y == (0,), "a dash where it was measured"


NAME = "<i>&lt;"


def test_names_are_text_in_every_chart():
    both = [
        Prediction(clip_id=f"c{i}", split="test", label=a, predicted=NAME, probability=0.9, label_probability=0.1)
        for i, a in enumerate((NAME, "flam"))
    ]
    found, line = confusion(both), Line(label=NAME, group=0, x=[1], y=[0.5], low=[0.4], high=[0.6])
    point = CostPoint(name=NAME, cost=1_000, score=score(0.5), is_control=False, on_frontier=True)
    settings = SettingAxis(field=f"lora.{NAME}", values=(NAME, "b"))
    parts = [(NAME, {NAME: score(0.5)})]
    changed = confusion_difference_info(difference(found, found), NAME, NAME, [(NAME, 2)])
    for figure in (
        confusion_figure(confusion_info(found, [(NAME, 2)]), labels=False),
        confusion_figure(confusion_info(found)),
        confusion_difference_figure(changed),
        class_accuracy_figure(class_accuracy_info(class_results(found))),
        curves_figure(curves_info(NAME, [line])),
        cost_figure(cost_info([point], "trainable", [Level(NAME, 0.5)])),
        scores_figure(scores_info(parts, level=parts[0])),
        slice_figure(slice_info(settings, [NAME, NAME], [0.5, 0.6], "valid accuracy")),
        parallel_figure(parallel_info([settings], [0.5, 0.6], "valid accuracy")).update_traces(
            dimensions=[{"ticktext": None}]  # not read as markup, tried in a browser
        ),
    ):
        drawn = figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">").replace("\\u0026", "&")
        assert NAME not in drawn and "&lt;i&gt;&amp;lt;" in drawn, figure
