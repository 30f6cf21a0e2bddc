"""The sweep in RESULTS.md: what it shows is what was measured, and every family learns what its control does not."""

import json
from pathlib import Path

import pytest

from benchmarks import controls, story

PAGE = Path(controls.__file__).with_name("RESULTS.md")
TOLD = json.loads(story.RESULTS.read_text())


def test_page_shows_the_table_and_the_verdict_of_the_results_on_disk():
    assert story.summary() in PAGE.read_text()
    assert story.baseline_line() in PAGE.read_text()


def test_every_run_of_the_sweep_was_finished_with_its_metrics():
    asked = {(model, seed) for model in controls.MINIS for seed in (0, 1, 2)}
    by_model = {row["setting"]: row["model"] for row in TOLD["settings"]}
    assert len(TOLD["runs"]) == 24 == 2 * len(asked)
    assert {(by_model[run["setting"]], run["seed"]) for run in TOLD["runs"]} == asked
    assert all(run["n"] == 200 and 0 < run["valid_accuracy"] <= 1 for run in TOLD["runs"])


@pytest.mark.parametrize("model", controls.MINIS)
def test_every_family_is_above_40_percent_and_above_its_random_control(model):
    rows = [row for row in TOLD["settings"] if row["model"] == model]
    assert len(rows) == 2
    for row in rows:
        assert min(row["seeds"]) > 0.4 and min(row["seeds"]) > story.control(model)
        assert row["mean"] == pytest.approx(sum(row["seeds"]) / 3)
