"""The live chart in a real browser: it moves, keeps the zoom, and outlives the server."""

import pytest
from playwright.sync_api import expect
from seeding import Training, config

from sousa_engine.core.records import Progress, RunStatus
from sousa_engine.store import Store

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("nobody_supervises")]


@pytest.fixture
def training(studio):
    """A run that this test trains by hand; its slot is given back at the end."""
    training = Training.begin(studio.workspace, config(max_epochs=100))
    yield training
    with Store.open(studio.workspace) as store:
        run = store.runs.get(training.run.id)
    if run and not run.status.is_over:
        training.end(RunStatus.STOPPED, "The test is over.")


@pytest.fixture
def watch(page, settled):
    """watch(training): its page, drawn up to its newest step. Returns the loss panel."""

    def open_run(training, newest=None):
        page.goto(f"/run?id={training.run.id}")
        settled(page)
        panel = page.locator("section.panel").first
        expect(panel).to_have_attribute("data-last", str(newest or training.step))
        return panel

    return open_run


def drag(page, panel, start=0.25, end=0.6):
    """Zoom by dragging over this share of the chart's width."""
    panel.scroll_into_view_if_needed()
    box = panel.locator(".u-over").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + (start + end) / 2 * box["width"], y, steps=4)
    page.mouse.move(box["x"] + end * box["width"], y, steps=4)
    page.mouse.up()


def test_curve_moves_while_points_arrive_without_a_remount(page, watch, training):
    training.steps(20)
    panel = watch(training)
    panel.locator("canvas").evaluate("node => { window.firstCanvas = node }")
    for step in (30, 45, 80):
        training.steps(step - training.step)
        expect(panel).to_have_attribute("data-last", str(step))
    assert panel.locator("canvas").evaluate("node => node === window.firstCanvas")
    expect(page.get_by_role("progressbar", name="Progress")).to_have_attribute("aria-valuenow", "2")
    expect(page.get_by_text("Epoch 3 of 100, step 80 of 3,800")).to_be_visible()


def test_zoom_is_kept_while_points_arrive_and_a_double_click_ends_it(page, watch, training):
    training.steps(60)
    panel = watch(training)
    whole = panel.get_attribute("data-range")
    drag(page, panel)
    zoomed = panel.get_attribute("data-range")
    first, last = map(float, zoomed.split(":"))
    assert 10 < first < 25 and 30 < last < 45
    assert page.locator("section.panel").nth(1).get_attribute("data-range") == zoomed, "both charts show the same steps"
    training.steps(30)
    expect(panel).to_have_attribute("data-last", "90")
    assert panel.get_attribute("data-range") == zoomed
    page.get_by_label("Log scale").check()
    assert panel.get_attribute("data-range") == zoomed
    panel.locator(".u-over").dblclick()
    expect(panel).to_have_attribute("data-range", "1:90")
    assert panel.get_attribute("data-range") != whole
    expect(page.get_by_role("button", name="Reset zoom")).to_be_hidden()


def test_zoom_survives_a_rerun_of_the_page(page, watch, settled, training):
    training.steps(60)
    panel = watch(training)
    drag(page, panel)
    zoomed = panel.get_attribute("data-range")
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_text("Changed from defaults")).to_be_visible()
    settled(page)
    assert panel.get_attribute("data-range") == zoomed


def test_zooming_into_a_long_run_fetches_every_step(page, watch, training):
    training.steps(2500)
    panel = watch(training, newest=2496)  # the newest bucket of 8 steps starts there
    coarse = int(panel.get_attribute("data-points"))
    assert coarse < 700
    with page.expect_response(lambda answer: "first=" in answer.url):
        drag(page, panel, 0.4, 0.5)
    expect(panel).not_to_have_attribute("data-points", str(coarse))
    assert int(panel.get_attribute("data-points")) > coarse + 150


def test_legend_reads_the_values_at_the_cursor_and_hides_a_curve(page, watch, training):
    training.steps(50)
    panel = watch(training)
    expect(panel.locator(".at")).to_have_text("step 50")
    panel.scroll_into_view_if_needed()
    box = panel.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + 40)
    expect(panel.locator(".at")).to_have_text("step 1")
    expect(panel.get_by_role("button", name="valid")).to_contain_text("–")
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 40)
    expect(panel.get_by_role("button", name="valid")).not_to_contain_text("–")
    panel.get_by_role("button", name="train").click()
    expect(panel.get_by_role("button", name="train")).to_have_attribute("aria-pressed", "false")


def test_queued_run_says_what_it_waits_for_and_can_be_taken_out(page, studio, training):
    with Store.open(studio.workspace) as store:
        queued = store.runs.enqueue(config(seed=9))
    page.goto(f"/run?id={queued.id}")
    expect(page.get_by_text("Waiting in the queue")).to_be_visible()
    expect(page.get_by_text("Curves appear after the first step.").first).to_be_visible()
    page.get_by_role("button", name="Remove from queue").click()
    expect(page.get_by_text("Stopped before it started.")).to_be_visible()


def test_features_being_computed_are_shown_with_their_count(page, studio):
    training = Training.begin(studio.workspace, prepared=False)
    page.goto(f"/run?id={training.run.id}")
    expect(page.get_by_text("Loading the network")).to_be_visible()
    training.report(progress=Progress(phase="preparing", done=320, total=1000))
    expect(page.get_by_text("Computing features: 320 of 1,000 clips")).to_be_visible()
    training.end(RunStatus.STOPPED, "The test is over.")


def test_loss_that_is_no_number_leaves_a_gap_and_says_so(page, watch, training):
    training.steps(30, diverge_at=25)
    panel = watch(training)
    expect(panel.get_by_role("button", name="train")).to_contain_text("not a number")
    expect(page.get_by_text("train/loss became NaN or infinite at step 25.")).to_be_visible()


def test_stop_button_asks_the_run_to_stop(page, watch, studio, training):
    training.steps(12)
    watch(training)
    page.get_by_role("button", name="Stop and save").click()
    expect(page.get_by_text("Saving a checkpoint, then stopping")).to_be_visible()
    with Store.open(studio.workspace) as store:
        run = store.runs.get(training.run.id)
    assert run.status is RunStatus.STOPPING
    expect(page.get_by_role("button", name="Stopping")).to_be_disabled()
    training.end(RunStatus.STOPPED, "Stopped at step 12.")
    expect(page.get_by_text("Stopped at step 12.")).to_be_visible()
    expect(page.get_by_role("button", name="Stopping")).to_be_hidden()


def test_results_appear_by_themselves_when_the_run_ends(page, watch, studio):
    training = Training.begin(studio.workspace, config(max_epochs=2))
    training.steps(10)
    panel = watch(training)
    training.finish()
    expect(page.get_by_text("n = 200 · 95 % interval").nth(1)).to_be_visible()
    expect(panel).to_have_attribute("data-last", "76")
    expect(page.locator(".js-plotly-plot")).to_have_count(2)


def test_deep_link_works_as_the_first_address_after_a_start(page, watch, studio, training):
    training.steps(7)
    studio.stop()
    studio.start()
    watch(training)
    expect(page.get_by_role("heading", name=training.run.title)).to_be_visible()
    page.reload()
    expect(page.locator("section.panel").first).to_have_attribute("data-last", "7")


def test_chart_catches_up_after_the_server_was_killed_and_started_again(page, watch, studio, training):
    training.steps(20)
    panel = watch(training)
    panel.locator("canvas").evaluate("node => { window.firstCanvas = node }")
    studio.kill()
    training.steps(15)
    expect(page.get_by_text("No answer from the studio")).to_be_visible()
    studio.start()
    expect(panel).to_have_attribute("data-last", "35")
    expect(page.get_by_text("No answer from the studio")).to_be_hidden()


def test_charts_stand_side_by_side_and_are_stacked_on_a_phone(page, watch, training):
    training.steps(5)
    watch(training)
    loss, accuracy = page.locator("section.panel").all()
    assert abs(loss.bounding_box()["y"] - accuracy.bounding_box()["y"]) < 2
    page.set_viewport_size({"width": 390, "height": 844})
    expect(loss.locator("canvas")).to_have_css("width", f"{loss.bounding_box()['width']:g}px")
    assert accuracy.bounding_box()["y"] > loss.bounding_box()["y"] + 200
    assert loss.bounding_box()["x"] + loss.bounding_box()["width"] <= 390


@pytest.mark.own_tab
def test_the_last_label_below_a_chart_is_whole(page, watch, training):
    page.add_init_script("""
        window.drawn = []
        const write = CanvasRenderingContext2D.prototype.fillText
        CanvasRenderingContext2D.prototype.fillText = function (text, x, ...more) {
            drawn.push({ text, right: x + this.measureText(text).width / 2, width: this.canvas.width })
            return write.call(this, text, x, ...more)
        }
    """)
    training.steps(1000)
    for width in (1400, 390):
        page.set_viewport_size({"width": width, "height": 900})
        watch(training)
        page.wait_for_function("drawn.some(label => label.text === '1,000')")
        labels = page.evaluate("drawn.filter(label => label.text === '1,000')")
        assert all(label["right"] <= label["width"] for label in labels), labels


def test_a_comparison_and_a_tab_follow_a_run_that_measures_and_ends(studio, page, settled, training):
    done = Training.begin(studio.workspace, config(seed=1, max_epochs=1), slot="cpu:1").finish()
    training.steps(20)
    page.goto(f"/run?id={training.run.id}")
    expect(page).to_have_title(f"0 % · {training.run.title} · {training.run.id[-4:]} · SOUSA")
    page.goto(f"/compare?run={done.id}&run={training.run.id}")
    settled(page)
    expect(page.get_by_text("running", exact=False).first).to_be_visible()
    training.finish()
    expect(page.get_by_text("One seed each: no conclusion about the settings.")).to_be_visible()
