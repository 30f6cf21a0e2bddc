"""The table of runs as hands meet it: ticks that stay with their runs whatever moves, keys, cards on a phone."""

import re

import pytest
from playwright.sync_api import expect
from seeding import Training, config

from sousa_engine.core.records import RunStatus
from sousa_engine.store import Store

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("nobody_supervises")]


@pytest.fixture(scope="module")
def runs(studio):
    """Three finished runs, oldest first: the first has the best test accuracy, the last the worst."""
    return [
        Training.begin(studio.workspace, config(seed=seed, max_epochs=1, name=f"run {seed}"), reach=reach).finish()
        for seed, reach in ((1, 0.7), (2, 0.5), (3, 0.2))
    ]


class Table:
    """What a visitor sees and does."""

    def __init__(self, page, settled):
        self.page, self.settled = page, settled
        self.rows = page.locator("tbody tr")

    def open(self, *titles):
        self.page.goto("/runs")
        expect(self.rows).not_to_have_count(0)
        self.settled(self.page)
        return self

    def row(self, run):
        return self.page.locator(f'tr[data-id="{run.id}"]')

    def box(self, run):
        return self.row(run).get_by_role("checkbox")

    def tick(self, run):
        self.box(run).click()

    def order(self, *runs):
        """Wait until the table has exactly these rows, in this order."""
        expect(self.rows).to_have_count(len(runs))
        for i, run in enumerate(runs):
            expect(self.rows.nth(i)).to_have_attribute("data-id", run.id)

    def ticked(self, *runs):
        for run in runs:
            expect(self.row(run)).to_have_count(1)
        for row in self.rows.all():
            box = row.get_by_role("checkbox")
            expect(box).to_be_checked(checked=row.get_attribute("data-id") in {run.id for run in runs})

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)


@pytest.fixture
def table(page, settled):
    return Table(page, settled)


def test_ticks_stay_with_their_runs_when_a_new_one_arrives_and_when_the_order_changes(studio, table, runs):
    first, second, third = runs
    table.open().order(third, second, first)
    table.tick(third)
    table.tick(first)
    expect(table.page.get_by_text("2 runs ticked")).to_be_visible()
    with Store.open(studio.workspace) as store:
        newest = store.runs.enqueue(config(seed=9, name="zz newest"))
    try:
        table.order(newest, third, second, first)  # it came by itself
        table.ticked(first, third)
        table.button("Test").click()
        table.order(first, second, third, newest)
        expect(table.page.get_by_role("columnheader", name="Test")).to_have_attribute("aria-sort", "descending")
        table.ticked(first, third)
        table.button("Title").click()
        expect(table.page.get_by_role("columnheader", name="Title")).to_have_attribute("aria-sort", "ascending")
        table.order(first, second, third, newest)
        table.button("Title").click()
        table.order(newest, third, second, first)
        table.ticked(first, third)
        table.button("Compare").click()
        table.page.wait_for_url(re.compile(r"/compare\?"))
        assert re.findall(r"run=([\w-]+)", table.page.url) == [third.id, first.id]
        expect(table.page.get_by_role("heading", name="Compare", exact=True)).to_be_visible()
    finally:
        with Store.open(studio.workspace) as store:
            store.runs.request_stop(newest.id)
            store.marks.delete([newest.id])


def test_clicks_faster_than_the_answer_all_count(table, runs):
    first, second, third = runs
    table.open().order(third, second, first)
    heading = table.page.get_by_role("columnheader", name="Test")
    table.button("Test").evaluate("button => { for (let i = 0; i < 4; i++) button.click(); }")
    expect(heading).to_have_attribute("aria-sort", "ascending")
    table.order(third, second, first)
    table.button("Test").evaluate("button => { for (let i = 0; i < 3; i++) button.click(); }")
    expect(heading).to_have_attribute("aria-sort", "descending")
    table.order(first, second, third)
    expect(table.page.locator(".root[aria-busy]")).to_have_count(0)


def test_ticks_outlive_a_reload_and_another_page(table, runs):
    second = runs[1]
    table.open().tick(second)
    expect(table.page.get_by_text("1 run ticked")).to_be_visible()
    table.page.reload()
    expect(table.page.get_by_text("1 run ticked")).to_be_visible()
    table.ticked(second)
    table.page.get_by_role("link", name="Studio").click()
    table.page.wait_for_url(re.compile(r"/$"))
    table.page.go_back()
    expect(table.page.get_by_text("1 run ticked")).to_be_visible()
    table.ticked(second)
    table.button("Untick all").click()
    expect(table.page.get_by_text("1 run ticked")).to_have_count(0)
    table.ticked()


def test_keys_move_tick_and_open(table, runs):
    first, second, third = runs
    table.open().box(third).focus()
    press = table.page.keyboard.press
    press("Space")
    press("End")
    press("Shift+Space")
    expect(table.page.get_by_text("3 runs ticked")).to_be_visible()
    table.ticked(first, second, third)
    press("ArrowUp")
    press("Space")
    table.ticked(first, third)
    expect(table.page.get_by_text("2 runs ticked")).to_be_visible()
    expect(table.box(second)).to_be_focused()  # the table was drawn anew meanwhile
    press("Enter")
    table.page.wait_for_url(re.compile(rf"/run\?id={second.id}"))


def test_a_heading_ticks_all_and_a_title_is_a_link(table, runs):
    first, second, _ = runs
    table.open()
    table.page.get_by_role("checkbox", name="Tick all runs on this page").check()
    expect(table.page.get_by_text("3 runs ticked")).to_be_visible()
    table.tick(second)
    every = table.page.get_by_role("checkbox", name="Tick all runs on this page")
    assert every.evaluate("box => box.indeterminate")
    link = table.row(first).get_by_role("link")
    assert link.get_attribute("href").endswith(f"/run?id={first.id}")
    link.click()
    table.page.wait_for_url(re.compile(rf"/run\?id={first.id}"))
    expect(table.page.get_by_role("heading", name="run 1")).to_be_visible()
    expect(table.page).to_have_title(f"run 1 · {first.id[-4:]} · SOUSA")


def test_back_leads_to_the_filters_to_the_run_and_to_the_comparison_that_were_left(table, runs):
    first, second, _ = runs
    page = table.open().page
    page.get_by_role("textbox", name="Search").fill("run 1")
    page.get_by_role("textbox", name="Search").press("Enter")
    table.order(first)
    table.row(first).get_by_role("link").click()
    page.get_by_role("button", name="Edit and launch").click()
    expect(page.get_by_role("heading", name="Launch")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="run 1")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("textbox", name="Search")).to_have_value("run 1")
    table.order(first)
    page.goto(f"/compare?run={first.id}&run={second.id}")
    expect(page.get_by_role("heading", name="Results")).to_be_visible()
    page.get_by_role("link", name="Queue").click()
    page.wait_for_url(re.compile("/queue$"))
    page.go_back()
    expect(page.get_by_role("heading", name="Results")).to_be_visible()
    assert re.findall(r"run=([\w-]+)", page.url) == [first.id, second.id]


def test_a_dialog_stays_open_while_the_list_refreshes_and_deletes_what_it_names(studio, table, runs):
    spare = [Training.begin(studio.workspace, config(seed=seed, max_epochs=1)).finish() for seed in (5, 6)]
    live = Training.begin(studio.workspace, config(seed=7))  # so that the list refreshes every two seconds
    try:
        table.open()
        for run in spare:
            table.tick(run)
        table.button("Delete").click()
        dialog = table.page.get_by_role("dialog")
        for run in spare:
            expect(dialog).to_contain_text(run.id)
        live.steps(60)
        expect(table.row(live.run).get_by_role("progressbar", include_hidden=True)).to_have_attribute(
            "aria-valuenow", "16"
        )
        expect(dialog).to_be_visible()
        now = dialog.get_by_role("button", name="Delete", exact=True)
        expect(now).to_be_disabled()
        dialog.get_by_role("textbox").press_sequentially("delete 2")
        expect(now).to_be_enabled()
        now.click()
        expect(dialog).to_have_count(0)
        for run in spare:
            expect(table.row(run)).to_have_count(0)
            assert not studio.workspace.run_dir(run.id).exists()
    finally:
        live.end(RunStatus.STOPPED, "The test is over.")


def test_a_button_acts_on_a_tick_that_the_page_has_yet_to_show(studio, table):
    """The tick and the click reach the server together, as from quick hands or on a busy machine."""
    one, two = [Training.begin(studio.workspace, config(seed=seed, max_epochs=1)).finish() for seed in (11, 12)]
    table.open().tick(one)
    expect(table.page.get_by_text("1 run ticked")).to_be_visible()
    archive = table.button("Archive").element_handle()
    table.box(two).evaluate(
        """(box, archive) => {
            box.click();
            box.dispatchEvent(new FocusEvent("focusout", { bubbles: true, composed: true }));  // as a hand that leaves
            archive.click();
        }""",
        archive,
    )
    expect(table.page.get_by_text("2 runs archived")).to_be_visible()
    for run in (one, two):
        expect(table.row(run)).to_have_count(0)
    with Store.open(studio.workspace) as store:
        store.marks.delete([one.id, two.id])


def test_what_people_wrote_is_text_and_never_markup(studio, table, runs):
    hostile = '<img src=x onerror="boom()"> "a" & <b>b</b>'
    run = Training.begin(studio.workspace, config(seed=8, max_epochs=1, name=hostile)).finish()
    try:
        with Store.open(studio.workspace) as store:
            store.marks.set_tags(run.id, ["<i>tag</i>"])
            store.marks.set_note(run.id, '"><script>boom()</script>')
        table.open()
        expect(table.row(run).get_by_role("link")).to_have_text(hostile)
        expect(table.row(run).locator(".tag")).to_have_text("<i>tag</i>")
        expect(table.row(run).locator(".note")).to_have_attribute("title", '"><script>boom()</script>')
        assert table.row(run).locator("img, b, script").count() == 0
    finally:
        with Store.open(studio.workspace) as store:
            store.marks.delete([run.id])


def test_a_phone_sees_cards_and_sorts_them(table, runs):
    first, *_ = runs
    table.page.set_viewport_size({"width": 390, "height": 844})
    table.open()
    table.page.get_by_role("combobox", name="Sort by").select_option("test")
    expect(table.rows.first).to_have_attribute("data-id", first.id)
    card = table.row(first).bounding_box()
    assert card["x"] >= 0 and card["x"] + card["width"] <= 390 and card["height"] > 60
    assert table.page.evaluate("document.documentElement.scrollWidth") <= 390
    table.tick(first)
    expect(table.page.get_by_text("1 run ticked")).to_be_visible()
