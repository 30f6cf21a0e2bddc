"""The module tree as hands meet it: ticks, counts, search, keys, what survives a reload or a restart."""

import pytest
from playwright.sync_api import expect
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from sousa_engine import targets

pytestmark = pytest.mark.browser

BODY = "audio_spectrogram_transformer"
LAYER = f"{BODY}.layers.0"


def test_deep_link_opened_first_shows_the_real_tree(tree, outline):
    tree.open()
    tree.click("Expand all")
    assert tree.row("whole network").get_attribute("aria-expanded") == "true"
    seen = set()
    for _ in range(40):
        seen |= set(tree.page.locator("[role=treeitem]").evaluate_all("all => all.map(e => e.dataset.i)"))
        if len(seen) == len(outline.nodes):
            break
        tree.tree.hover()
        tree.page.mouse.wheel(0, 400)
        tree.page.wait_for_timeout(20)
    assert len(seen) == len(outline.nodes) == 167
    assert tree.page.get_by_text("86,219,560").first.is_visible()


def test_all_linear_with_the_head_by_lora_trains_exactly_1333568(tree):
    tree.open()
    tree.click("Untick all")
    tree.until(layers=0, trainable=32_296)
    tree.search.fill("linear")
    tree.click("Tick the 72 matches")
    tree.until(layers=72, adapters=1_327_104)
    tree.head("LoRA")
    tree.until(layers=73, head=6_464, trainable=1_333_568, total=86_219_560)
    assert tree.counts()["percent"] == 1.55
    tree.python_says(73, 1_333_568, 86_219_560)


def test_browser_and_python_count_alike(tree, outline):
    tree.open()
    tree.click("Untick all")
    ticked = []
    ways = [(f"{LAYER}.attention.q_proj", 8, "Train fully", "train", 40), (f"{LAYER}.mlp", 16, "LoRA", "lora", 12)]
    ways += [(f"{BODY}.embeddings", 3, "Freeze", "freeze", 1000)]
    for path, r, label, head, classes in ways:
        tree.tick(path)
        ticked += [n.path for n in outline.nodes if n.adaptable and (n.path == path or n.path.startswith(path + "."))]
        tree.page.get_by_role("textbox", name="Rank r").fill(str(r))
        tree.page.get_by_role("textbox", name="Classes").fill(str(classes))
        tree.press("Enter")
        tree.head(label)
        says = targets.count(outline, ticked, r=r, head=head, num_classes=classes)
        tree.until(
            layers=says.layers, adapters=says.adapter_parameters, head=says.head_parameters,
            trainable=says.trainable, total=says.total,
        )  # fmt: skip
        assert tree.counts()["percent"] == pytest.approx(says.percent, rel=0.01)
        tree.python_says(says.layers, says.trainable, says.total)


def test_counts_follow_a_tick_while_the_server_is_away_and_the_tick_arrives_later(tree, studio):
    tree.open()
    tree.click("Untick all")
    tree.python_says(0, 32_296, 86_219_560)
    studio.kill()
    tree.tick(f"{LAYER}.attention.q_proj")
    tree.until(layers=1, adapters=12_288, trainable=44_584)
    studio.start()
    tree.python_says(1, 44_584, 86_219_560)
    tree.until(layers=1, adapters=12_288, trainable=44_584)


def test_ticks_survive_another_page_and_a_reload(tree):
    tree.open()
    tree.click("Untick all")
    tree.tick(f"{LAYER}.attention.v_proj")
    tree.python_says(1, 44_584, 86_219_560)
    tree.page.get_by_role("link", name="Studio").click()
    tree.page.get_by_role("heading", name="SOUSA engine").wait_for()
    tree.page.go_back()
    tree.row(BODY).wait_for()
    tree.until(layers=1)
    tree.page.reload()
    tree.row(BODY).wait_for()
    tree.until(layers=1, trainable=44_584)
    tree.python_says(1, 44_584, 86_219_560)


def test_each_backbone_keeps_its_own_ticks(tree):
    tree.page.set_viewport_size({"width": 1400, "height": 1800})  # a list of options closes when the page scrolls
    tree.open()
    tree.click("Untick all")
    tree.python_says(0, 32_296, 86_219_560)
    for name, layers in (("ast-mini", 24), ("ast-base", 0)):
        tree.page.get_by_role("combobox", name="Backbone").click()
        tree.page.get_by_role("option", name=name).click()
        tree.until(layers=layers)


@pytest.mark.own_tab
def test_a_tick_travels_alone_and_not_with_the_whole_tree(tree):
    received = []
    tree.page.on("websocket", lambda socket: socket.on("framereceived", lambda data: received.append(len(data))))
    tree.open()
    first = sum(received)
    received.clear()
    tree.click("Untick all")
    tree.python_says(0, 32_296, 86_219_560)
    assert 0 < sum(received) < first / 5
    assert sum(received) < 20_000


def test_a_pasted_list_of_old_names_is_shown_today_s_and_ticked(tree):
    tree.open()
    tree.page.get_by_role("tab", name="Paste a list").click()
    box = tree.page.get_by_label("Target names")
    box.fill("peft_target_modules:\n- query\n- value\n- qurey_proj\n")
    tree.press("Control+Enter")
    tree.page.get_by_text("No match for 1 of 3 entries").wait_for()
    assert tree.page.get_by_role("button", name="Tick these modules").is_disabled()
    box.fill("query, value")
    tree.press("Control+Enter")
    # Streamlit moves the buttons up and shows them in both places until the page has run.
    expect(tree.page.get_by_text("No match for 1 of 3 entries")).to_have_count(0)
    tree.page.get_by_role("button", name="Use current names").click()
    tree.page.wait_for_function("() => document.querySelector('textarea').value.includes('- q_proj')")
    tree.click("Tick these 24 modules")
    tree.until(layers=24)
    tree.python_says(24, 294_912 + 32_296, 86_219_560)


def test_ticks_are_handed_over_to_launch(tree):
    tree.open()
    tree.click("Attention")
    tree.until(layers=48)
    tree.click("Launch with these targets")
    tree.page.get_by_role("heading", name="Launch", exact=True).wait_for()
    tree.page.locator("input[value='ticked: attention (48)']").wait_for()


def test_what_was_typed_on_launch_is_kept_while_another_page_is_shown(page, settled):
    def field(role, name):
        return page.get_by_role(role, name=name, exact=True)

    def go(name):
        field("link", name).click(delay=60)  # as a hand presses: the field that it leaves says its value first
        expect(field("heading", name)).to_be_visible()
        settled(page)

    page.goto("/launch")
    settled(page)
    expect(field("textbox", "Epochs")).to_have_value("10")
    field("textbox", "Epochs").fill("7")
    field("textbox", "Learning rate").fill("0.004")
    go("Data")
    go("Launch")
    expect(field("textbox", "Epochs")).to_have_value("7")
    expect(field("textbox", "Learning rate")).to_have_value("0.004")
    expect(page.get_by_text("training.max_epochs=7")).to_contain_text("training.lr=0.004")
    field("textbox", "Seed").fill("5")
    go("Runs")
    page.go_back()
    expect(field("textbox", "Seed")).to_have_value("5")
    expect(page.get_by_text("training.max_epochs=7")).to_contain_text("seed=5")


@pytest.mark.parametrize(
    ("form", "role", "name", "typed", "said", "beside"),
    [
        ("Launch", "textbox", "Seed", "5", "seed=5", {"Epochs": "10", "Batch size": "16"}),
        ("Sweeps", "textbox", "Seeds", "4 5", "--seeds 4 5", {"Epochs": "10"}),
    ],
)
@pytest.mark.own_tab
def test_a_form_shows_what_it_holds_also_where_its_page_came_back(page, settled, form, role, name, typed, said, beside):
    """A tap on a link right after typing: what was typed arrives last and brings back its page, with new fields."""
    page.goto(f"/{form.lower()}")
    settled(page)
    field = page.get_by_role(role, name=name, exact=True)
    expect(field).not_to_have_value("")
    field.fill(typed)
    page.get_by_role("link", name="Data", exact=True).click()
    command = page.locator("code", has_text=said)
    data = page.get_by_role("heading", name="Data", exact=True, level=1)  # the page's: Launch has one of that name too

    def go_back():
        """The tap and the typed value may come in either order, so Data may stay, or show up late."""
        settled(page)
        if data.is_visible():
            page.get_by_role("link", name=form, exact=True).click(delay=60)

    page.add_locator_handler(data, go_back)
    expect(command).to_be_visible()
    expect(field).to_have_value(typed)
    for label, value in beside.items():
        expect(page.get_by_role("textbox", name=label, exact=True)).to_have_value(value)


@pytest.mark.parametrize(
    ("address", "first", "second"),
    [
        ("/backbones?variant=ast-base", "Rank r", "Classes"),
        ("/launch", "Seed", "Epochs"),
        ("/sweeps", "Seeds", "Epochs"),
    ],
)
@pytest.mark.own_tab
def test_what_is_typed_while_an_older_answer_travels_is_kept(page, settled, address, first, second):
    """Two values in quick succession: the server's answer to the first comes when the second is typed already."""
    late: list = []
    is_late = False

    def between(tab):
        server = tab.connect_to_server()
        tab.on_message(server.send)
        server.on_message(lambda message: late.append((tab, message)) if is_late else tab.send(message))

    def arrive():
        for tab, message in late:
            tab.send(message)
        late.clear()

    def enter(name, text):
        field = page.get_by_role("textbox", name=name, exact=True)
        field.fill(text)
        field.press("Enter")
        return field

    page.route_web_socket("**/_stcore/stream", between)
    page.goto(address)
    settled(page)
    expect(page.get_by_role("textbox", name=second, exact=True)).not_to_have_value("")
    is_late = True
    one = enter(first, "3")
    while not any(ForwardMsg.FromString(message).WhichOneof("type") == "script_finished" for _, message in late):
        page.wait_for_timeout(50)
    two = enter(second, "12")
    arrive()
    page.wait_for_timeout(300)  # the fields are drawn
    enter(first, "4")
    is_late = False
    arrive()
    page.wait_for_timeout(500)
    settled(page)
    expect(two).to_have_value("12")
    expect(one).to_have_value("4")


@pytest.mark.parametrize("address", ["/", "/backbones?variant=ast-base"])
def test_a_phone_needs_no_sideways_scrolling(page, settled, address):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(address)
    settled(page)
    page.get_by_role("heading").first.wait_for()
    width = page.evaluate("() => document.querySelector('[data-testid=stMain]').scrollWidth")
    assert width <= 390


@pytest.mark.own_tab
def test_no_page_asks_anything_of_another_server(page, settled):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for address in ("/", "/backbones", "/data", "/launch", "/runs", "/compare", "/run"):
        page.goto(address)
        settled(page)
        page.get_by_role("heading").first.wait_for()
    home = page.url.split("/run")[0]
    assert len(asked) > 7
    assert [url for url in asked if not url.startswith((home, "data:", "blob:"))] == []
