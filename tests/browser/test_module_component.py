"""The component of the module tree alone, without a server: hands, keys, what no page shows, every variant."""

import json
import random
import re
from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest

from sousa_engine import backbones, targets
from sousa_engine.core.methods import METHODS
from sousa_engine.web.components.module_tree import HERE

pytestmark = pytest.mark.browser

BODY = "audio_spectrogram_transformer"
LAYER = f"{BODY}.layers.0"


def draw():
    import streamlit as st

    from sousa_engine import targets
    from sousa_engine.core.methods import METHODS
    from sousa_engine.web.components.module_tree import module_tree as draw_tree

    given = dict(st.session_state["given"])
    given["method"] = METHODS[given.get("method", "lora")]
    draw_tree(targets.load_outline(given.pop("variant")), **{"r": 8, "head": "train", "num_classes": 40, **given})


def data_for(**given):
    """What Python sends to the tree."""
    app = AppTest.from_function(draw, default_timeout=60)
    app.session_state["given"] = given
    app.run()
    assert not app.exception
    return json.loads(app.get("bidi_component")[0].proto.json)


@pytest.fixture(scope="module")
def studio():
    """None: nothing here is asked of a server."""
    return SimpleNamespace(url="http://127.0.0.1:9")


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


def test_folders_show_what_is_ticked_below_them(alone):
    tree = alone(variant="ast-base", start=[])
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


def test_tick_all_like_this_ticks_the_same_module_in_every_layer(alone, outline):
    tree = alone(variant="ast-base", start=[])
    path = f"{LAYER}.mlp.fc2"
    assert len(outline.alike(path)) == 12
    tree.row(path).hover()
    tree.page.get_by_role("button", name=f"Tick all 12 like {path}").click()
    tree.until(layers=12, adapters=12 * 8 * (768 + 3072))
    tree.row(f"{LAYER}.attention").click(button="right")
    tree.page.get_by_role("menuitem", name="Tick all 12 like this", exact=True).click()
    tree.until(layers=60)
    names = [path, *(f"{LAYER}.attention.{x}_proj" for x in "qkvo")]
    says = targets.count(outline, [p for n in names for p in outline.alike(n)], r=8, head="train", num_classes=40)
    tree.until(trainable=says.trainable)


def test_search_finds_by_words_by_regex_and_by_old_names(alone):
    tree = alone(variant="ast-base", start=[])
    tree.search.fill("layers.3 attention.query")
    tree.page.get_by_text("1 found").wait_for()
    tree.search.fill(r"/layers\.(10|11)\..*(q|v)_proj$/")
    tree.page.get_by_text("4 found").wait_for()
    tree.press("Enter")
    tree.until(layers=4)
    tree.search.fill("intermediate.dense")  # today's mlp.fc1
    tree.page.get_by_text("12 found").wait_for()
    for text in ("mlp in", "In  mlp", "fc(1)$"):  # by the rule of targets.grep
        tree.search.fill(text)
        tree.page.get_by_text(f"{len(targets.grep(targets.load_outline('ast-base'), text))} found").wait_for()
    for text, said in (
        ("/(/", "Unterminated group"),
        ("fc[1", "Unterminated"),
        ("/q_proj", "the closing / is missing"),
    ):
        tree.search.fill(text)
        tree.page.get_by_text(re.compile(f"not a regular expression: {said}", re.IGNORECASE)).wait_for()
    tree.search.fill("no such module")
    tree.page.get_by_text("Nothing matches this search.").wait_for()
    tree.press("Escape")
    tree.row(BODY).wait_for()
    tree.until(layers=4)


def test_a_folder_ticked_under_a_search_ticks_what_is_seen_of_it(alone):
    tree = alone(variant="ast-base", start=[])
    tree.search.fill("v_proj")
    tree.page.get_by_text("12 found").wait_for()
    tree.tick(LAYER)
    tree.until(layers=1)
    tree.tick(f"{BODY}.layers")
    tree.until(layers=12)
    tree.click("Untick")
    tree.until(layers=0)


def test_keys_move_fold_and_tick(alone):
    tree = alone(variant="ast-base", start=[])
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
    assert "set by the head policy" in label
    tree.press("/")
    assert tree.search.evaluate("e => e.getRootNode().activeElement === e")


def test_what_lora_cannot_adapt_is_disabled_and_says_why(alone):
    tree = alone(variant="ast-base", start=[])
    norm = tree.row(f"{LAYER}.layernorm_before")
    assert norm.get_attribute("aria-disabled") == "true"
    assert "is a vector" in norm.get_attribute("title")
    before = tree.counts()
    norm.locator(".box").click()
    assert tree.counts() == before


def test_the_grid_is_one_stop_for_tab_and_arrows_move_in_it(alone):
    tree = alone(variant="ast-base", start=[])
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
        ("dymn10_as", "All depthwise", "layers.0, depthwise", "mixes its filters for each clip"),
    ],
)
def test_cells_of_what_cannot_be_adapted_are_disabled_and_say_why(alone, variant, column, cell, why):
    tree = alone(variant=variant, start=[])
    before = tree.counts()
    for name in (column, cell):
        box = tree.page.get_by_role("checkbox", name=name)
        assert box.get_attribute("aria-disabled") == "true"
        assert why in box.get_attribute("aria-label") and why in box.get_attribute("title")
        box.hover()
        assert why in tree.page.locator(".told").text_content()
        box.click(force=True)
        assert (box.get_attribute("aria-checked"), tree.counts()) == ("false", before)


def test_ranks_by_key_and_what_does_not_fit(alone):
    tree = alone(variant="ast-base", start=[])
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
        tree.page.get_by_text(f"{text} is not a valid rank for {q}. Enter 1 to 768.").wait_for()
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


def test_all_like_this_gives_its_rank_too(alone):
    tree = alone(variant="ast-base", start=[])
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
    outline = targets.load_outline(variant)
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
        says = targets.count(outline, ticked, ranks=counted, method=name, **settings)
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
    outline = max(map(targets.load_outline, backbones.VARIANTS), key=lambda o: len(o.nodes))
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
