"""The HTML report as its reader opens it: from a disk, without a network, in light and dark, on a desk and a phone."""

import pytest
from playwright.sync_api import expect
from seeding import seed_sweep

from sousa_engine import report
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace

pytestmark = pytest.mark.browser
NAME = "<img src=x onerror=alert(1)> & <b>rank</b>"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    workspace = Workspace(root=folder)
    sweep_id = seed_sweep(workspace, seeds=(1, 2), pruned=1)
    with Store.open(workspace) as store:
        store.runs.rename(store.sweeps.runs(sweep_id)[0].id, NAME)
        text = report.html(report.read(store, sweep=store.sweeps.find(sweep_id)))
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 390)])
def test_a_report_draws_all_charts_and_makes_no_request(browser, file, scheme, width):
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900})
    page, errors, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto(file.as_uri())
    expect(page.locator("html[data-drawn=yes]")).to_have_count(1)
    assert page.locator("[data-chart]").count() == 9 == page.locator("[data-chart] .main-svg:first-child").count()
    assert page.locator("[data-chart=curves] .scatterlayer .trace").count() >= 8
    ink = {"light": "rgb(29, 40, 44)", "dark": "rgb(231, 235, 232)"}[scheme]
    title = page.locator("[data-chart=curves] .xtitle")
    assert title.evaluate("e => getComputedStyle(e).fill") == ink, "charts follow the scheme"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself never scrolls sideways"
    expect(page.get_by_text(NAME).first).to_be_attached()
    assert page.locator("img[src=x]").count() == 0
    assert asked == [file.as_uri()] and errors == []
    page.emulate_media(color_scheme={"light": "dark", "dark": "light"}[scheme])
    expect(title).not_to_have_css("fill", ink)
    context.close()


def test_a_report_prints_in_the_colours_of_paper(browser, file):
    context = browser.new_context(offline=True, color_scheme="dark", viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.goto(file.as_uri())
    expect(page.locator("html[data-drawn=yes]")).to_have_count(1)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    expect(page.locator("[data-chart=curves] .xtitle")).to_have_css("fill", "rgb(29, 40, 44)")
    expect(page.locator("body")).to_have_css("background-color", "rgb(253, 252, 249)")
    expect(page.locator("[data-chart=curves] .main-svg").first).to_have_attribute("width", "680")
    context.close()
