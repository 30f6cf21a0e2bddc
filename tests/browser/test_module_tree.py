"""The module tree as hands meet it: ticks, counts, grid, ranks, search, keys, what survives a reload or a restart."""

import json
import random
import re

import pytest
from streamlit.testing.v1 import AppTest

from sousa_engine import backbones, launch, module_tree
from sousa_engine.methods import METHODS
from sousa_engine.web.components.module_tree import HERE

pytestmark = pytest.mark.browser

BODY = "audio_spectrogram_transformer"
LAYER = f"{BODY}.layers.0"


class Tree:
    """What a user can see and do in the tree of one tab."""

    def __init__(self, page, settled):
        self.page, self.settled = page, settled
        self.tree = page.get_by_role("tree", name="Modules")
        self.search = page.get_by_role("textbox", name="Search modules")

    def open(self, variant="ast-base"):
        self.page.goto(f"/backbones?variant={variant}")
        self.row("whole network").wait_for()
        self.settled(self.page)
        return self

    def box(self, name):
        """A cell or a heading of the grid."""
        return self.page.get_by_role("checkbox", name=name, exact=True)

    def rank(self, path):
        """The field of one row."""
        return self.page.get_by_role("spinbutton", name=f"Rank of {path}", exact=True)

    def focused(self):
        """The name of what has the keyboard."""
        return self.page.locator(":focus").last.get_attribute("aria-label")

    def row(self, path):
        return self.page.locator(f'[role=treeitem][aria-label^="{path},"]')

    def tick(self, path):
        self.row(path).locator(".box").click()

    def checked(self, path):
        return self.row(path).get_attribute("aria-checked")

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def active(self):
        label = self.page.locator(".row.active").get_attribute("aria-label")
        return label.split(",")[0]

    def click(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()

    def head(self, name):
        self.page.get_by_role("radio", name=name, exact=True).click()

    def counts(self):
        """The browser's own counts, as numbers."""
        texts = self.page.locator("[data-count]").evaluate_all("all => all.map(e => [e.dataset.count, e.textContent])")
        return {name: float(re.sub(r"[^\d.]", "", text)) for name, text in texts}

    def until(self, **expected):
        """Wait until the browser's counts are these."""
        for name, value in expected.items():
            self.page.wait_for_function(
                "([name, text]) => [...document.querySelectorAll('*')].some(e =>"
                " e.shadowRoot?.querySelector(`[data-count=${name}]`)?.textContent === text)",
                arg=[name, f"{value:,}"],
            )

    def python_says(self, layers, trainable, total):
        """Wait until Python's own count, under the Launch button, is this."""
        modules = "1 module" if layers == 1 else f"{layers} modules"
        self.page.get_by_text(f"{modules} with LoRA, {trainable:,} trainable of {total:,}").wait_for()


@pytest.fixture
def tree(page, settled):
    return Tree(page, settled)


@pytest.fixture
def outline():
    return module_tree.load_outline("ast-base")


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
        tree.page.get_by_role("spinbutton", name="Rank r").fill(str(r))
        tree.page.get_by_role("spinbutton", name="Classes").fill(str(classes))
        tree.press("Enter")
        tree.head(label)
        says = module_tree.count(outline, ticked, r=r, head=head, num_classes=classes)
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


def test_folders_show_what_is_ticked_below_them(tree):
    tree.open()
    tree.click("Untick all")
    assert tree.checked(LAYER) == "false"
    tree.tick(f"{LAYER}.attention.k_proj")
    assert [tree.checked(p) for p in (f"{LAYER}.attention", LAYER, f"{LAYER}.mlp")] == ["mixed", "mixed", "false"]
    tree.tick(f"{LAYER}.attention")
    assert tree.checked(f"{LAYER}.attention") == "true"
    tree.until(layers=4)
    tree.tick(LAYER)
    tree.until(layers=6)
    tree.tick(LAYER)
    tree.until(layers=0)


def test_tick_all_like_this_ticks_the_same_module_in_every_layer(tree, outline):
    tree.open()
    tree.click("Untick all")
    path = f"{LAYER}.mlp.fc2"
    assert len(outline.alike(path)) == 12
    tree.row(path).hover()
    tree.page.get_by_role("button", name=f"Tick all 12 like {path}").click()
    tree.until(layers=12, adapters=12 * 8 * (768 + 3072))
    tree.row(f"{LAYER}.attention").click(button="right")
    tree.page.get_by_role("menuitem", name="Tick all 12 like this", exact=True).click()
    tree.until(layers=60)
    names = [path, *(f"{LAYER}.attention.{x}_proj" for x in "qkvo")]
    says = module_tree.count(outline, [p for n in names for p in outline.alike(n)], r=8, head="train", num_classes=40)
    tree.until(trainable=says.trainable)


def test_search_finds_by_words_by_regex_and_by_old_names(tree):
    tree.open()
    tree.click("Untick all")
    tree.search.fill("layers.3 attention.query")
    tree.page.get_by_text("1 found").wait_for()
    tree.search.fill(r"/layers\.(10|11)\..*(q|v)_proj$/")
    tree.page.get_by_text("4 found").wait_for()
    tree.press("Enter")
    tree.until(layers=4)
    tree.search.fill("intermediate.dense")  # today's mlp.fc1
    tree.page.get_by_text("12 found").wait_for()
    tree.search.fill("/(/")
    tree.page.get_by_text("not a regular expression").wait_for()
    tree.search.fill("no such module")
    tree.page.get_by_text("Nothing matches this search.").wait_for()
    tree.press("Escape")
    tree.row(BODY).wait_for()
    tree.until(layers=4)


def test_a_folder_ticked_under_a_search_ticks_what_is_seen_of_it(tree):
    tree.open()
    tree.click("Untick all")
    tree.search.fill("v_proj")
    tree.page.get_by_text("12 found").wait_for()
    tree.tick(LAYER)
    tree.until(layers=1)
    tree.tick(f"{BODY}.layers")
    tree.until(layers=12)
    tree.click("Untick")
    tree.until(layers=0)


def test_keys_move_fold_and_tick(tree):
    tree.open()
    tree.click("Untick all")
    tree.tree.focus()
    tree.press("Home")
    assert tree.active() == "whole network"
    tree.press("ArrowDown", "ArrowLeft")
    assert tree.row(BODY).get_attribute("aria-expanded") == "false"
    tree.press("ArrowRight", "ArrowRight")
    assert tree.active() == f"{BODY}.embeddings"
    tree.press("l")  # type-ahead: layers
    assert tree.active() == f"{BODY}.layers"
    tree.press("ArrowDown", "q")
    assert tree.active() == f"{LAYER}.attention.q_proj"
    tree.press("Space")
    tree.until(layers=1)
    tree.press("Space")
    tree.until(layers=0)
    tree.press("Shift+Space")
    tree.until(layers=12)
    tree.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert tree.active() == LAYER
    tree.press("*")
    assert tree.row(f"{BODY}.layers.1").get_attribute("aria-expanded") == "true"
    tree.press("End")
    assert tree.active() == "classifier.dense"
    tree.press("Space")
    tree.until(layers=12)
    label = tree.row("classifier.dense").get_attribute("aria-label")
    assert "its policy decides" in label
    tree.press("/")
    assert tree.search.evaluate("e => e.getRootNode().activeElement === e")


def test_what_lora_cannot_adapt_is_disabled_and_says_why(tree):
    tree.open()
    norm = tree.row(f"{LAYER}.layernorm_before")
    assert norm.get_attribute("aria-disabled") == "true"
    assert "is a vector" in norm.get_attribute("title")
    before = tree.counts()
    norm.locator(".box").click()
    assert tree.counts() == before


HTSAT_BLOCKS = [(stage, block) for stage, depth in enumerate((2, 2, 6, 2)) for block in range(depth)]


def test_the_grid_ticks_cells_rows_columns_and_all_attention(tree, outline):
    tree.open()
    tree.click("Untick all")
    ticked = set()
    ways = {
        "layers.3, attention query": lambda n: (n.layer, n.role) == (3, "attention.query"),
        "All of layers.5": lambda n: n.layer == 5,
        "All mlp in": lambda n: n.role == "mlp.in",
        "All attention": lambda n: n.role.startswith("attention."),
        "All of outside": lambda n: n.layer is None,
    }
    for name, belongs in ways.items():
        tree.box(name).click()
        ticked |= {n.path for n in outline.nodes if n.adaptable and not outline.in_head(n.path) and belongs(n)}
        says = module_tree.count(outline, ticked, r=8, head="train", num_classes=40)
        tree.until(layers=says.layers, adapters=says.adapter_parameters, trainable=says.trainable)
        assert tree.box(name).get_attribute("aria-checked") == "true"
    seen = {
        name: tree.box(name).get_attribute("aria-checked") for name in ("All mlp", "layers.4, mlp out", "All mlp in")
    }
    assert seen == {"All mlp": "mixed", "layers.4, mlp out": "false", "All mlp in": "true"}
    assert tree.checked(f"{LAYER}.attention") == "true"
    tree.python_says(says.layers, says.trainable, 86_219_560)
    tree.box("All attention").click()
    tree.until(layers=says.layers - 48)
    assert tree.checked(f"{LAYER}.attention") == "false"


def test_the_grid_is_one_stop_for_tab_and_arrows_move_in_it(tree):
    tree.open()
    tree.click("Untick all")
    stops = tree.page.locator(".grid button[tabindex='0']")
    stops.focus()
    assert stops.count() == 1 and tree.focused() == "All patch"
    walk = [
        ("ArrowDown", "outside, patch"),
        ("ArrowDown", "outside, patch"),  # no layer below has one
        ("ArrowLeft", "All of outside"),
        ("ArrowDown", "All of layers.0"),
        ("ArrowRight", "layers.0, attention query"),
        ("ArrowRight", "layers.0, attention key"),
        ("ArrowUp", "All attention key"),
        ("ArrowUp", "All attention"),
        ("ArrowDown", "All attention key"),  # the column is kept under a heading of several
        ("ArrowUp", "All attention"),
        ("ArrowRight", "All mlp"),
        ("ArrowDown", "All mlp in"),
        ("ArrowDown", "layers.0, mlp in"),
        ("Home", "All of layers.0"),
    ]
    for key, name in walk:
        tree.press(key)
        assert tree.focused() == name, (key, name)
    tree.press("ArrowRight", "Space")
    tree.until(layers=1)
    tree.press("Enter")
    tree.until(layers=0)
    tree.press("ArrowUp", "ArrowUp", "Space")
    tree.until(layers=48)
    tree.press("End")
    assert tree.focused().startswith("All norm. ")
    tree.press("Space")
    tree.until(layers=48)
    assert stops.count() == 1
    tree.press("Tab")
    assert tree.page.locator(".grid :focus").count() == 0


@pytest.mark.parametrize(
    ("variant", "column", "cell", "why"),
    [
        ("ast-base", "All norm", "layers.0, norm", "the weight of LayerNorm is a vector"),
        ("mn10_as", "All depthwise", "features.4, depthwise", "its LoRA could not be merged back"),
        ("dymn10_as", "All depthwise", "layers.0, depthwise", "mixes its filters anew for each clip"),
    ],
)
def test_cells_of_what_cannot_be_adapted_are_disabled_and_say_why(tree, variant, column, cell, why):
    tree.open(variant)
    before = tree.counts()
    for name in (column, cell):
        box = tree.page.get_by_role("checkbox", name=name)
        assert box.get_attribute("aria-disabled") == "true"
        assert why in box.get_attribute("aria-label") and why in box.get_attribute("title")
        box.hover()
        assert why in tree.page.locator(".told").text_content()
        box.click(force=True)
        assert (box.get_attribute("aria-checked"), tree.counts()) == ("false", before)


@pytest.mark.parametrize(
    ("variant", "ready", "column", "rows"),
    [
        ("mn10_as", "SE", "All se", ["outside", *(f"features.{i}" for i in range(1, 16))]),
        (
            "htsat-audioset",
            "Attention",
            "All attention qkv",
            ["outside", *(f"layers.{i}.blocks.{j}" for i, j in HTSAT_BLOCKS)],
        ),
        ("beats-iter3-plus", "Attention", "All attention query", ["outside", *(f"layers.{i}" for i in range(12))]),
    ],
)
def test_every_family_shows_its_own_layers_roles_and_sets(tree, variant, ready, column, rows):
    tree.open(variant)
    tree.click("Untick all")
    tree.until(layers=0)
    tree.click(ready)
    tree.until(layers=len(launch.recommended_sets(module_tree.load_outline(variant))[ready.lower()]))
    assert tree.box(column).get_attribute("aria-checked") == "true"
    assert tree.page.locator(".grid tbody th").all_text_contents() == rows


def test_whether_the_grid_is_open_is_remembered(tree):
    tree.open()
    assert tree.box("All attention").is_visible()
    tree.page.get_by_text("Layers by roles").click()
    assert not tree.box("All attention").is_visible()
    tree.page.reload()
    tree.row(BODY).wait_for()
    assert not tree.box("All attention").is_visible()


def test_on_a_phone_the_grid_waits_closed_and_scrolls_in_its_own_box(tree):
    tree.page.set_viewport_size({"width": 390, "height": 844})
    tree.open()
    assert not tree.box("All attention").is_visible()
    tree.page.get_by_text("Layers by roles").click()
    sheet = tree.page.locator(".sheet")
    left = tree.box("All of layers.0").bounding_box()["x"]
    sheet.evaluate("e => e.scrollLeft = 1000")
    assert sheet.evaluate("e => e.scrollLeft") > 50
    assert tree.box("All of layers.0").bounding_box()["x"] == left
    tree.page.get_by_role("checkbox", name="layers.0, mlp out").click()
    tree.until(layers=71)
    assert tree.page.evaluate("() => document.querySelector('[data-testid=stMain]').scrollWidth") <= 390


def test_a_rank_of_its_own_is_counted_kept_over_a_reload_and_arrives_on_launch(tree, outline):
    tree.open()
    tree.click("Untick all")
    q, v = (f"{LAYER}.attention.{name}_proj" for name in "qv")
    assert tree.rank(q).count() == 0
    tree.tick(q)
    tree.tick(v)
    tree.rank(q).fill("32")
    says = module_tree.count(outline, [q, v], r=8, head="train", num_classes=40, ranks={q: 32})
    tree.until(layers=2, adapters=says.adapter_parameters, trainable=says.trainable)
    assert tree.rank(q).input_value() == "32"
    tree.python_says(2, says.trainable, 86_219_560)
    tree.page.reload()
    tree.row(BODY).wait_for()
    tree.until(layers=2, trainable=says.trainable)
    tree.python_says(2, says.trainable, 86_219_560)
    assert (tree.rank(q).input_value(), tree.rank(v).input_value()) == ("32", "8")
    tree.page.get_by_role("tab", name="Copy as YAML").click()
    tree.page.get_by_text(f"{q}: 32").wait_for()
    tree.click("Launch with these targets")
    tree.page.get_by_role("heading", name="Launch", exact=True).wait_for()
    tree.page.get_by_text("1 of them with a rank of their own").wait_for()
    tree.page.go_back()
    tree.row(BODY).wait_for()
    tree.until(trainable=says.trainable)
    assert tree.rank(q).input_value() == "32"


def test_ranks_by_key_and_what_does_not_fit(tree):
    tree.open()
    tree.click("Untick all")
    q = f"{LAYER}.attention.q_proj"
    tree.tick(q)
    tree.press("F2")
    assert tree.focused() == f"Rank of {q}"
    tree.page.keyboard.type("16")
    tree.until(adapters=16 * 1536)
    tree.press("ArrowUp", "ArrowUp", "ArrowDown")
    tree.until(adapters=17 * 1536)
    tree.press("Enter")
    assert tree.focused() == "Modules"
    assert "rank 17" in tree.row(q).get_attribute("aria-label")
    tree.press("F2")
    for text in ("769", "0", "-3", "2.5", "many"):
        tree.rank(q).fill(text)
        assert tree.rank(q).get_attribute("aria-invalid") == "true"
        tree.page.get_by_text(f"{text} is no rank for {q}. Choose 1 to 768.").wait_for()
        tree.until(adapters=17 * 1536)
    tree.rank(q).fill("768")
    tree.until(adapters=768 * 1536)
    tree.press("Escape")
    tree.until(adapters=17 * 1536)
    assert tree.focused() == "Modules"
    tree.rank(q).fill("")
    tree.until(adapters=8 * 1536)
    tree.press("Enter")
    assert tree.rank(q).input_value() == "8"
    tree.rank(q).fill("4")
    tree.tick(q)
    tree.tick(q)  # a new tick begins with the general rank
    tree.until(adapters=8 * 1536)


def test_all_like_this_gives_its_rank_too(tree):
    tree.open()
    tree.click("Untick all")
    path = f"{LAYER}.mlp.fc2"
    alike = tree.page.get_by_role("button", name=f"Tick all 12 like {path}")
    tree.tick(path)
    tree.rank(path).fill("2")
    alike.click()
    tree.until(layers=12, adapters=12 * 2 * (768 + 3072))
    tree.rank(path).fill("3")
    tree.until(adapters=(11 * 2 + 3) * (768 + 3072))
    alike.click()
    tree.until(layers=12, adapters=12 * 3 * (768 + 3072))
    alike.click()  # all are alike now: off
    tree.until(layers=0)


def test_the_rank_being_typed_keeps_the_keyboard_while_the_page_runs(tree):
    tree.open()
    q, k = (f"{LAYER}.attention.{name}_proj" for name in "qk")
    tree.rank(q).click()
    tree.press("End", "Backspace")
    for digit, rank in (("1", 1), ("2", 12)):
        tree.page.keyboard.type(digit)
        tree.python_says(72, 1_359_400 + (rank - 8) * 1536, 86_219_560)
    assert (tree.focused(), tree.rank(q).input_value(), tree.rank(k).input_value()) == (f"Rank of {q}", "12", "8")


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
    tree.page.get_by_text("1 of 3 entries match nothing").wait_for()
    assert tree.page.get_by_role("button", name="Tick these modules").is_disabled()
    box.fill("query, value")
    tree.press("Control+Enter")
    tree.page.get_by_role("button", name="Use today's names").click()
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


@pytest.mark.parametrize("address", ["/", "/backbones?variant=ast-base"])
def test_a_phone_needs_no_sideways_scrolling(page, settled, address):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(address)
    settled(page)
    page.get_by_role("heading").first.wait_for()
    width = page.evaluate("() => document.querySelector('[data-testid=stMain]').scrollWidth")
    assert width <= 390


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


# ---- the component alone, without a server: what the page does not show, and every variant


def draw():
    import streamlit as st

    from sousa_engine import module_tree
    from sousa_engine.methods import METHODS
    from sousa_engine.web.components.module_tree import module_tree as draw_tree

    given = dict(st.session_state["given"])
    given["method"] = METHODS[given.get("method", "lora")]
    draw_tree(module_tree.load_outline(given.pop("variant")), **{"r": 8, "head": "train", "num_classes": 40, **given})


def data_for(**given):
    """What Python sends to the tree."""
    app = AppTest.from_function(draw, default_timeout=60)
    app.session_state["given"] = given
    app.run()
    assert not app.exception
    return json.loads(app.get("bidi_component")[0].proto.json)


@pytest.fixture
def alone(page, tree):
    """alone(variant=..., start=..., blocked=..., method=...) shows the tree, or tells the one shown something new."""
    script = "".join((HERE / name).read_text() for name in ("model.js", "grid.js", "view.js")) + "export { Model };"
    html = f"<style>{(HERE / 'tree.css').read_text()}</style>{(HERE / 'tree.html').read_text()}"
    page.evaluate(
        """async ([script, html]) => {
            window.shadow = document.body.attachShadow({ mode: "open" });
            shadow.innerHTML = html;
            const module = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
            window.Model = module.Model;
            window.mount = (data) => { module.default({ data, parentElement: shadow, setStateValue() {} }); };
        }""",
        [script, html],
    )

    def show(**given):
        page.evaluate("data => mount(data)", data_for(**given))
        return tree

    return show


def test_blocked_modules_are_disabled_say_why_and_come_back_ticked(alone, outline):
    patch = next(node.path for node in outline.nodes if node.role == "patch")
    given = {"variant": "ast-base", "start": [patch, *outline.alike(f"{LAYER}.attention.q_proj")]}
    tree = alone(**given)
    tree.until(layers=13)
    alone(**given, blocked={patch: "PiSSA adapts Linear only, not Conv2d."})
    tree.until(layers=12, adapters=12 * 8 * 1536)
    column = tree.page.get_by_role("checkbox", name="All patch")
    for element in (tree.row(patch), column):
        assert element.get_attribute("aria-disabled") == "true"
        assert "PiSSA adapts Linear only, not Conv2d." in element.get_attribute("title")
    tree.tick(patch)
    column.click(force=True)
    tree.until(layers=12)
    tree.box("All of layers.0").click()
    tree.until(layers=17)
    alone(**given)
    tree.until(layers=18)


def test_a_method_counts_its_own_parameters_and_shows_ranks_only_where_it_knows_them(alone, outline):
    fc1 = list(outline.alike(f"{LAYER}.mlp.fc1"))
    tree = alone(variant="ast-base", start=fc1, method="ia3", head="lora")
    tree.search.fill(fc1[1])
    tree.until(layers=13, adapters=12 * 3072, head=40)
    tree.row(fc1[1]).wait_for()
    assert tree.page.get_by_role("spinbutton").count() == 0
    tree.row(fc1[1]).click()
    tree.until(layers=12, adapters=11 * 3072)
    assert "IA3: 3,072 parameters" in tree.page.locator(".about").text_content()
    tree.row(fc1[1]).click()
    alone(variant="ast-base", start=fc1, method="dora")
    tree.until(layers=12, adapters=12 * (8 * (768 + 3072) + 3072))
    assert tree.rank(fc1[1]).count() == 1
    assert "DoRA r=8: 33,792 parameters" in tree.page.locator(".about").text_content()


@pytest.mark.parametrize("variant", sorted(backbones.VARIANTS))
def test_browser_and_python_count_alike_in_every_backbone(alone, page, variant):
    outline = module_tree.load_outline(variant)
    able = [node.path for node in outline.nodes if node.adaptable and not outline.in_head(node.path)]
    dice = random.Random(variant)
    sent = data_for(variant=variant, start=[])
    for name, method in METHODS.items():
        if not method.takes_targets:
            continue
        heads = ("train", "freeze") if method.reason(outline.head_layer.kind) else ("train", "lora", "freeze")
        head = dice.choice(heads)
        body = [path for path in able if not method.reason(outline.node(path).kind)]
        ticked = dice.sample(body, k=len(body) // 2)
        ranks = {target.path: dice.randint(1, target.width) for target in outline.targets(ticked[::3])}
        settings = {"r": dice.randint(1, 64), "head": head, "num_classes": dice.randint(2, 600)}
        data = sent | settings | {"method": {**sent["method"], "name": name, "ranks": method.takes_ranks}}
        found, choice = page.evaluate(
            """([data, paths, ranks]) => {
                const model = new Model(data);
                model.seed(paths, ranks);
                return [model.count(data), model.choice];
            }""",
            [data, ticked, ranks],
        )
        counted = ranks if method.takes_ranks else {}
        says = module_tree.count(outline, ticked, ranks=counted, method=name, **settings)
        assert found == {
            "layers": says.layers,
            "adapters": says.adapter_parameters,
            "head": says.head_parameters,
            "trainable": says.trainable,
            "total": says.total,
            "percent": pytest.approx(says.percent),
        }
        assert (set(choice["paths"]), choice["ranks"]) == (set(ticked), ranks)


def test_in_the_largest_tree_few_rows_are_drawn_and_a_tick_changes_few_elements(alone, page):
    outline = max(map(module_tree.load_outline, backbones.VARIANTS), key=lambda o: len(o.nodes))
    tree = alone(variant=outline.variant, start=[])
    tree.click("Expand all")
    assert len(outline.nodes) > 300 and page.get_by_role("treeitem").count() < 60
    page.evaluate(
        """() => {
            window.changed = 0;
            const size = (record) => (record.type === "attributes" ? 1 : record.addedNodes.length);
            const watch = new MutationObserver((records) => { for (const record of records) changed += size(record); });
            watch.observe(shadow, { subtree: true, childList: true, attributes: true });
        }"""
    )
    tree.tick(next(node.path for node in outline.nodes if node.adaptable))
    tree.until(layers=1)
    assert 0 < page.evaluate("() => changed") < 60
