"""What is wrong with a draft is said field by field, for a form to show."""

import pytest

from sousa_engine import targets
from sousa_engine.core.errors import TargetError
from sousa_engine.runs.problems import problems

Q = "audio_spectrogram_transformer.layers.0.attention.q_proj"


def test_a_draft_that_makes_a_run_has_none():
    assert problems({}) == {}
    assert problems({"model": {"variant": "ast-mini"}, "lora": {"targets": [Q]}}) == {}


def test_every_invalid_field_is_named():
    found = problems(
        {
            "model": {"variant": "ast-mini", "weights": ""},
            "data": {"dataset": ""},
            "lora": {"targets": [Q], "r": 1000},
            "training": {"lr": -1.0},
        }
    )
    width = targets.load_outline("ast-mini").targets([Q])[0].width
    assert set(found) == {"model.weights", "data.dataset", "lora.r", "training.lr"}
    assert found["data.dataset"] == "Enter a folder or a table."
    assert f"above the width of {Q} ({width})" in found["lora.r"]


def test_a_path_that_is_not_in_the_network_is_refused():
    with pytest.raises(TargetError, match="no_such"):
        problems({"lora": {"targets": ["no_such"]}})
