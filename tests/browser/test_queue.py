"""The queue in a browser: quick clicks on Start, and the order of what waits."""

import re

import pytest

from sousa_engine.store import Store

pytestmark = pytest.mark.browser
CLICKS = "button => { for (let i = 0; i < 30; i++) button.click() }"


@pytest.fixture
def store(studio):
    with Store.open(studio.workspace) as opened:
        opened.queue.pause()  # what is started here waits
        yield opened


def test_thirty_clicks_on_start_make_one_run(page, settled, store):
    page.goto("/launch")
    settled(page)
    start = page.get_by_role("button", name="Start training")
    start.wait_for()
    start.evaluate(CLICKS)
    page.wait_for_url(re.compile("/run"))
    settled(page)
    (run,) = store.runs.all()
    assert run.id in page.url
    page.get_by_role("button", name="Clone").evaluate(CLICKS)
    page.wait_for_url(lambda url: "/run" in url and run.id not in url)
    settled(page)
    assert len(store.runs.all()) == 2


CLICKS_SPREAD = """() => new Promise(done => {
    let left = 30
    const timer = setInterval(() => {
        const clone = [...document.querySelectorAll("button")].find(button => button.innerText.endsWith("Clone"))
        if (clone && !clone.disabled) clone.click()
        if (!--left) { clearInterval(timer); done() }
    }, 100)
})"""


def test_thirty_clicks_on_clone_among_the_runs_make_one_run_of_each_ticked(page, settled, store):
    before = len(store.runs.all())
    page.goto("/runs")
    page.locator("tbody tr").first.get_by_role("checkbox").click()
    page.get_by_text("1 run ticked").wait_for()
    page.evaluate(CLICKS_SPREAD)
    page.get_by_text("1 run queued.").first.wait_for()
    settled(page)
    assert len(store.runs.all()) == before + 1
    store.runs.request_stop(store.queue.waiting()[-1].id)


def test_what_waits_is_moved_and_the_pause_ended(page, settled, store):
    first, second = (row.id for row in store.queue.waiting())
    page.goto("/queue")
    settled(page)
    assert page.get_by_text("The queue has been paused since").count() == 1
    page.get_by_role("button", name="Front").nth(1).click()
    page.get_by_text("Now at place 1 in the queue.").wait_for()
    assert [row.id for row in store.queue.waiting()] == [second, first]
    for left in (1, 0):
        page.get_by_role("button", name="Remove").first.click()
        page.get_by_text(f"Waiting: {left}" if left else "The queue is empty").wait_for()
    page.get_by_role("button", name="Resume the queue").click()
    page.get_by_role("button", name="Pause the queue").wait_for()
    assert not store.queue.settings().is_paused
