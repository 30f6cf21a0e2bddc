"""The main job as a newcomer does it: tick modules, launch, see the curve move, keep the zoom, stop, compare.

With the real trainer on the smallest embedded data, through the pages alone.
"""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from sousa_engine.core.records import RunStatus
from sousa_engine.store import Store
from sousa_engine.workspace import run_files

pytestmark = [pytest.mark.browser, pytest.mark.process]
DEADLINE_S = 240  # for training on a busy machine; every wait below ends as soon as its condition holds


def until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s for: {what}"
        time.sleep(0.1)


def run_of(studio, run_id):
    with Store.open(studio.workspace, readonly=True) as store:
        return store.runs.get(run_id)


def launch_from_page(page, settled, *, epochs, seed):
    """Fill the Launch page and start; returns the id in the address of the run's page."""
    page.get_by_role("button", name="Start training").wait_for()
    choose(page, "Data set", "micro")
    settled(page)
    for label, value in (("Epochs", epochs), ("Seed", seed)):
        box = page.get_by_role("textbox", name=label, exact=True)
        box.fill(str(value))
        box.press("Enter")
        settled(page)
    start = page.get_by_role("button", name="Start training")
    expect(start).to_be_enabled()
    start.click()
    page.wait_for_url(re.compile(r"/run\?id="), timeout=DEADLINE_S * 1000)
    return re.search(r"id=([\w-]+)", page.url)[1]


def choose(page, label, option):
    page.get_by_role("combobox", name=re.compile(label)).click()
    page.get_by_role("option", name=re.compile(f"^{option}")).click()


def last_step(panel):
    return int(panel.get_attribute("data-last") or 0)


@pytest.fixture(scope="module")
def told():
    """What one test learned and the next needs: the ids of the runs."""
    return {}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="says which files are watched on Linux alone")
def test_the_studio_watches_no_files(page, settled, studio):
    """It would be notified of thousands of files that runs open in the environment below its folder."""
    page.goto("/launch")
    settled(page)
    opened = [str(handle.resolve()) for handle in Path(f"/proc/{studio.process.pid}/fd").iterdir()]
    assert opened and not [name for name in opened if "inotify" in name]


def test_ticked_modules_train_while_the_curve_moves_and_the_zoom_is_kept(studio, page, settled, told):
    page.goto("/backbones?variant=ast-mini")
    settled(page)
    page.get_by_role("button", name="Attention", exact=True).click()
    page.wait_for_function("document.readyState === 'complete'")
    settled(page)
    page.get_by_role("button", name=re.compile("Launch with these")).click()
    page.wait_for_url(re.compile("/launch"))
    settled(page)
    run_id = told["stopped"] = launch_from_page(page, settled, epochs=500, seed=1)

    panel = page.locator("section.panel").first
    until(lambda: last_step(panel) >= 6, "six steps on the chart")
    panel.scroll_into_view_if_needed()
    box = panel.locator(".u-over").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.2 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], y, steps=6)
    page.mouse.up()
    zoomed, seen = panel.get_attribute("data-range"), last_step(panel)
    until(lambda: last_step(panel) > seen + 3, "the curve to move on")
    assert panel.get_attribute("data-range") == zoomed

    found = run_of(studio, run_id)
    assert found.status is RunStatus.RUNNING
    roles = {target.path.split(".")[-2] for target in found.config.lora.targets}
    assert roles == {"attention"} and len(found.config.lora.targets) == 16


def test_killing_the_studio_does_not_touch_the_training_and_stop_saves_a_checkpoint(studio, page, settled, told):
    run_id = told["stopped"]
    page.goto(f"/run?id={run_id}")
    settled(page)
    spool = studio.workspace.run_dir(run_id) / run_files.SPOOL
    for how in (signal.SIGKILL, signal.SIGINT):
        studio.stop(how)
        size = spool.stat().st_size
        until(lambda size=size: spool.stat().st_size > size, f"the training to go on after {how.name} of the studio")
        studio.start()
    page.goto(f"/run?id={run_id}")
    settled(page)
    panel = page.locator("section.panel").first
    seen = last_step(panel)
    until(lambda: last_step(panel) > seen, "the curve to move after the restart")

    page.get_by_role("button", name="Stop and save").click()
    until(lambda: run_of(studio, run_id).status.is_over, "the run to stop")
    assert run_of(studio, run_id).status is RunStatus.STOPPED
    folder = studio.workspace.run_dir(run_id)
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    last = json.loads((newest / "facts.json").read_text())["step"]
    with Store.open(studio.workspace, readonly=True) as store:
        assert store.metrics.summaries([run_id])[run_id]["train/loss"].last_step == last
    page.reload()
    settled(page)
    expect(page.get_by_text(f"Stopped at step {last}.").first).to_be_visible()


def test_a_finished_run_is_compared_with_the_stopped_one(studio, page, settled, told):
    page.goto("/launch")
    settled(page)
    run_id = launch_from_page(page, settled, epochs=2, seed=2)
    until(lambda: run_of(studio, run_id).status.is_over, "the second run to end")
    assert run_of(studio, run_id).status is RunStatus.FINISHED
    page.goto(f"/compare?run={told['stopped']}&run={run_id}")
    settled(page)
    page.get_by_role("tab", name="What differs").click()
    differing = page.get_by_role("region", name="Settings that differ from the base")
    for field in ("seed", "training.max_epochs", "lora.targets"):
        expect(differing).to_contain_text(field)
    expect(page.get_by_text(re.compile("no conclusion", re.IGNORECASE)).first).to_be_visible()
    page.goto(f"/run?id={run_id}")
    settled(page)
    expect(page.get_by_text(re.compile(r"n = 40")).first).to_be_visible()
