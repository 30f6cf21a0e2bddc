"""The grid of layers by roles, and the ranks of single modules, as hands meet them."""

import pytest

from sousa_engine import targets

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
        says = targets.count(outline, ticked, r=8, head="train", num_classes=40)
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
    tree.until(layers=len(targets.recommended_sets(targets.load_outline(variant))[ready.lower()]))
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
    says = targets.count(outline, [q, v], r=8, head="train", num_classes=40, ranks={q: 32})
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
    tree.page.get_by_text("1 module has a separate rank, set in the tree.").wait_for()
    tree.page.go_back()
    tree.row(BODY).wait_for()
    tree.until(trainable=says.trainable)
    assert tree.rank(q).input_value() == "32"


def test_the_rank_being_typed_keeps_the_keyboard_while_the_page_runs(tree):
    tree.open()
    q, k = (f"{LAYER}.attention.{name}_proj" for name in "qk")
    tree.rank(q).click()
    tree.press("End", "Backspace")
    for digit, rank in (("1", 1), ("2", 12)):
        tree.page.keyboard.type(digit)
        tree.python_says(72, 1_359_400 + (rank - 8) * 1536, 86_219_560)
    assert (tree.focused(), tree.rank(q).input_value(), tree.rank(k).input_value()) == (f"Rank of {q}", "12", "8")
