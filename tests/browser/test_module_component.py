"""The component of the module tree alone, without a server: what the page does not show, and every variant."""

import json
import random

import pytest
from streamlit.testing.v1 import AppTest

from sousa_engine import backbones, module_tree
from sousa_engine.methods import METHODS
from sousa_engine.web.components.module_tree import HERE

pytestmark = pytest.mark.browser

LAYER = "audio_spectrogram_transformer.layers.0"


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
