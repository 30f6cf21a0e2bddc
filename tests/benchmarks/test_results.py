"""What RESULTS.md and README say of speed, storage, adoption, probe and verdict is what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks import adoption, controls, probe, run, storage, threads, verdict
from tests.faults.__main__ import RESULTS as FAULTS

PAGE = Path(controls.__file__).with_name("RESULTS.md")
README = PAGE.parents[1] / "README.md"


def measured(model):
    return json.loads((controls.RESULTS / f"controls-{model}.json").read_text())


@pytest.mark.parametrize("summary", [probe.summary, run.summary, storage.summary, threads.summary, verdict.summary])
def test_page_shows_the_table_of_the_results_on_disk(summary):
    assert summary() in PAGE.read_text()


def test_page_shows_how_soon_a_run_is_adopted():
    assert f"within {json.loads(adoption.RESULTS.read_text())['median_s']:.1f} s" in PAGE.read_text()


def test_probe_converged_and_was_chosen_by_valid():
    for row in json.loads(probe.RESULTS.read_text()):
        assert row["converged"] and row["n"] == 200
        assert max(row["valid"].values()) == row["valid"][f"{row['C']:g}"]


def test_no_gain_over_a_converged_probe_is_shown_by_the_intervals():
    probes = {row["model"]: row for row in json.loads(probe.RESULTS.read_text())}
    for model in controls.MINIS:
        lora = next(row for row in measured(model) if row["row"] == "lora")
        assert lora["low"] < probes[model]["high"] and probes[model]["low"] < lora["high"]


def test_readme_says_what_was_measured():
    text = " ".join(README.read_text().split())
    rows = [row for model in controls.MINIS for row in measured(model)]
    for name in ("lora", "random"):
        means = [100 * row["mean"] for row in rows if row["row"] == name]
        assert f"{min(means):.0f} to {max(means):.0f} %" in text
    worst = json.loads(verdict.RESULTS.read_text())["worst_false_winner_rate"].values()
    assert f"at most {100 * max(rates['engine'] for rates in worst):.1f} %" in text
    speed = json.loads(run.RESULTS.read_text())
    assert f"{speed[1]['factor']:.2g} times cheaper than padding" in text
    painted = json.loads(storage.RESULTS.read_text())["measured"]["table, clicked"]["median_ms"]
    assert f"appears {painted / 1000:.1f} s after the click" in text
    total = json.loads(FAULTS.read_text())["total"]
    assert total["lost"] == 0 and f"{total['rounds']} rounds" in text
