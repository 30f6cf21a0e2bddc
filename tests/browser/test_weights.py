"""Weights in a real browser: the page shows what a separate process does, without a click or reload."""

import re

import pytest
from safetensors.torch import save_file

from sousa_engine import backbones
from sousa_engine.backbones import pretrained

pytestmark = pytest.mark.browser


def test_a_refusal_and_an_import_show_themselves(studio, page, settled, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(backbones.build("mn04_as", num_classes=4).state_dict(), file)
    page.goto("/backbones?variant=dymn04_as")
    settled(page)
    take(page, file)
    page.get_by_text(re.compile("does not fit dymn04_as: .* tensors are missing")).wait_for()
    page.goto("/backbones?variant=mn04_as")
    settled(page)
    take(page, file)
    page.get_by_text("pretrained: mine.safetensors").wait_for()  # the badge of the card above
    page.get_by_text(f"imported from {file}").wait_for()
    assert pretrained.stored(backbones.variant("mn04_as"), studio.workspace).size_bytes == file.stat().st_size


def take(page, file):
    page.get_by_text("Weights", exact=True).first.click()
    page.get_by_role("textbox", name="A weights file on this machine").fill(str(file))
    page.get_by_role("button", name="Check and import").click()
