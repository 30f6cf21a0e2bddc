"""The grid of layers by roles, and the ranks of single modules, as hands meet them."""

import pytest

from sousa_engine import launch, module_tree

pytestmark = pytest.mark.browser

BODY = "audio_spectrogram_transformer"
LAYER = f"{BODY}.layers.0"


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
