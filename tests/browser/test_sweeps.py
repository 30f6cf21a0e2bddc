"""The tiles of a sweep as hands meet them: they follow their runs, keep their ticks, lead to Compare and to a run."""

import re

import pytest
from playwright.sync_api import expect
from seeding import train_next

from sousa_engine.core import sweep_spec
from sousa_engine.runs import ensure, sweep_orders
from sousa_engine.store import Store

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("nobody_supervises")]
ASKED = {
    "name": "which rank",
    "axes": {"lora.r": [2, 4, 8]},
    "seeds": [0],
    "base": {"data": {"dataset": "micro"}, "training": {"max_epochs": 3}},
}


@pytest.fixture
def store(studio):
    with Store.open(studio.workspace) as opened:
        yield opened


@pytest.fixture
def ranks(store, monkeypatch):
    """A sweep of three runs, all queued; it is stopped at the end."""
    monkeypatch.setattr(ensure, "ensure", lambda workspace, options=(): False)
    made = sweep_orders.start(store.workspace, sweep_spec.build(ASKED), created_by="test")
    yield made
    sweep_orders.stop(store, made.id)


def chip(page, label, status):
    return page.get_by_role("link", name=f"{label}, seed 0: {status}", exact=True)


def tick(page, label):
    return page.get_by_role("checkbox", name=f"Tick {label}", exact=True)


def order(page):
    return page.locator(".tile .title").all_text_contents()


def test_a_tile_follows_its_run_without_a_reload_and_ticked_ones_land_on_compare(page, settled, store, ranks):
    page.goto("/sweeps")
    settled(page)
    page.get_by_role("link", name=ranks.name).first.click()
    page.wait_for_url(re.compile(f"id={ranks.id}"))
    expect(chip(page, "r 2", "queued")).to_be_visible()
    page.evaluate("window.stillHere = true")
    tick(page, "r 8").check()
    tick(page, "r 4").focus()

    train_next(store, reach=0.4)
    expect(chip(page, "r 2", "finished")).to_be_visible()
    expect(page.locator(".tile", has_text="r 2").locator("svg path")).to_have_attribute("d", re.compile("^M33.3 .*L"))
    second = train_next(store, reach=0.6)
    expect(chip(page, "r 4", "finished")).to_be_visible()
    assert page.evaluate("window.stillHere"), "the page was not loaded again"
    assert page.evaluate("document.activeElement.shadowRoot.activeElement.ariaLabel") == "Tick r 4", (
        "the keyboard stays"
    )
    expect(tick(page, "r 8")).to_be_checked()

    page.keyboard.press("Space")
    compare = page.get_by_role("button", name="Compare ticked (2 runs)")
    expect(compare).to_be_enabled()
    page.get_by_text("best first", exact=True).click()
    expect(page.locator(".tile .title").first).to_have_text("r 4")
    assert order(page) == ["r 4", "r 2", "r 8"]
    expect(tick(page, "r 4")).to_be_checked()
    expect(tick(page, "r 2")).not_to_be_checked()
    compare.click()
    page.wait_for_url(re.compile("/compare"))
    third = next(run for run in store.sweeps.runs(ranks.id) if run.trial == 2)
    assert page.url.endswith(f"/compare?run={second.id}&run={third.id}")


def test_a_click_on_a_tile_opens_its_run_and_going_back_finds_the_ticks_again(page, settled, store, ranks):
    page.goto(f"/sweeps?id={ranks.id}")
    settled(page)
    tick(page, "r 2").check()
    tick(page, "r 8").check()
    expect(page.get_by_role("button", name="Compare ticked (2 runs)")).to_be_enabled()
    run = store.sweeps.runs(ranks.id)[1]
    page.locator(".tile", has_text="r 4").click()
    page.wait_for_url(re.compile(f"/run\\?id={run.id}"))
    page.get_by_role("link", name=f"Part of sweep {ranks.name}, trial 1").click()
    page.wait_for_url(re.compile(f"/sweeps\\?id={ranks.id}"))
    expect(page.get_by_role("button", name="Compare ticked (2 runs)")).to_be_enabled()
    expect(tick(page, "r 2")).to_be_checked()
    page.get_by_role("link", name="All sweeps").click()
    page.wait_for_url(re.compile("/sweeps$"))
    page.go_back()
    expect(tick(page, "r 2")).to_be_checked()
    page.get_by_role("button", name="Untick all").click()
    expect(page.get_by_role("button", name="Compare ticked")).to_be_disabled()
    expect(tick(page, "r 8")).not_to_be_checked()
