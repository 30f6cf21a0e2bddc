"""The page Data in a real browser: what was chosen there goes along."""

from __future__ import annotations

import re

import bad_audio
import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("link", ["Train on this data set", "Train a linear probe"])
def test_strict_mode_goes_along_from_data_to_launch(studio, page, settled, tmp_path, link):
    drums = bad_audio.write_all(tmp_path / "drums")
    page.goto(f"/data?dataset={drums}")
    settled(page)
    page.get_by_text("Strict", exact=True).click()
    leads = page.get_by_role("link", name=link)
    expect(leads).to_have_attribute("href", re.compile("strict"))
    settled(page)
    leads.click()
    page.get_by_role("heading", name="Launch", exact=True).wait_for()
    expect(page.get_by_role("textbox", name="Folder or table")).to_have_value(str(drums))
    expect(page.get_by_role("switch", name="Strict")).to_be_checked()


def test_a_table_is_downloaded_by_our_button_alone(page, settled):
    """Streamlit's own writes labels that are formulas as they are."""
    page.goto("/data?dataset=micro")
    settled(page)
    table = page.get_by_test_id("stDataFrame").first
    table.hover()
    expect(table.get_by_role("button", name="Search")).to_be_visible()
    expect(table.get_by_role("button", name="Download as CSV")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    header = download.value.path().read_text("utf-8-sig").splitlines()[0]
    assert header == "path,label,player,split,duration_s,tempo_bpm,tier,snr_db,room,cycles"
