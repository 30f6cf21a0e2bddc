"""What RESULTS.md says of the embedded backbones is what was measured, on the very weights in the package."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from benchmarks import controls
from sousa_engine.backbones.embedded import FOLDER

PAGE = Path(controls.__file__).with_name("RESULTS.md")


def measured(model):
    return {line["row"]: line for line in json.loads((controls.RESULTS / f"controls-{model}.json").read_text())}


def test_page_shows_the_table_of_the_results_on_disk():
    assert controls.summary(controls.MINIS) in PAGE.read_text()


@pytest.mark.parametrize("model", controls.MINIS)
def test_pretraining_helps_each_embedded_backbone(model):
    rows = measured(model)
    assert list(rows) == list(controls.ROWS)
    lora, control = rows["lora"], rows["random"]
    assert len(lora["accuracies"]) == len(control["accuracies"]) == 3 and lora["n"] == control["n"] == 200
    assert lora["mean"] > 0.5 and lora["mean"] > control["mean"] + 0.1
    assert control["weights"] == "random weights"


@pytest.mark.parametrize("model", controls.MINIS)
def test_it_was_measured_on_the_weights_in_the_package(model):
    digest = sha256((FOLDER / model / "model.safetensors").read_bytes()).hexdigest()
    assert measured(model)["lora"]["weights"].endswith(digest[:12])
