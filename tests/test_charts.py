import pytest

from sousa_engine.analysis.confusion import class_results, confusion
from sousa_engine.analysis.curves import Line
from sousa_engine.charts.class_accuracy import class_accuracy_figure, class_accuracy_info
from sousa_engine.charts.confusion import confusion_figure, confusion_info
from sousa_engine.charts.curves import curves_figure, curves_info
from sousa_engine.records import Prediction


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
    assert info.notes == ("3 of 4 clips; mostly taken for flam", "2 of 2 clips")
    assert all(low <= value <= high for low, value, high in zip(info.low, info.values, info.high, strict=True))
    assert len(class_accuracy_figure(info).data[0].x) == 2


def test_curves_keep_gaps_and_tell_equal_titles_apart():
    lines = [
        Line(label="a", x=(1, 2, 3), y=(1.0, None, 0.5)),
        Line(label="a", x=(1,), y=(2.0,)),
        Line(label="empty", x=(), y=()),
    ]
    info = curves_info("train/loss", lines, log=True)
    assert [line.label for line in info.lines] == ["a", "a (2)"]
    figure = curves_figure(info)
    assert figure.data[0].y == (1.0, None, 0.5) and figure.data[0].connectgaps is False
    assert figure.layout.yaxis.type == "log"


def test_shares_are_drawn_in_per_cent_and_never_on_a_log_axis():
    info = curves_info("valid/accuracy", [Line(label="a", x=(1,), y=(0.5,))], log=True)
    assert info.is_share and not info.log
    assert curves_figure(info).layout.yaxis.tickformat == ".1~%"
