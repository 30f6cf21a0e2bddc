"""The Backbones page without a browser: what Python makes of ticks, pasted lists and saved sets."""

import json

import pytest
import yaml
from streamlit.testing.v1 import AppTest

from sousa_engine import backbones, targets
from sousa_engine.core.errors import WorkspaceError
from sousa_engine.store import Store
from sousa_engine.store.target_sets import TargetSets
from sousa_engine.web import handover
from sousa_engine.web.components.module_tree import Choice, outline_name
from sousa_engine.web.handover import Ticks
from sousa_engine.workspace import PROJECT_ROOT

MAIN = PROJECT_ROOT / "sousa_engine" / "web" / "main.py"
LAYERS = "audio_spectrogram_transformer.layers"


@pytest.fixture
def outline():
    return targets.load_outline("ast-base")


@pytest.fixture
def page(workspace, monkeypatch):
    """The page as opened under /backbones?variant=ast-base."""
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    app.query_params["variant"] = "ast-base"
    app.switch_page(str(PROJECT_ROOT / "pages" / "backbones.py")).run()
    assert not app.exception
    return app


def sent(page):
    """What Python sent to the tree."""
    return json.loads(written(page))


def written(page):
    """The same as the browser gets it, letter by letter."""
    return next(found.proto.json for found in page.get("bidi_component") if found.proto.json)


def tick(page, outline, paths, ranks=None, rev=None):
    """What the browser sends after ticks; the page then ran."""
    return leave_ticks(page, outline, paths, ranks, rev).run()


def leave_ticks(page, outline, paths, ranks=None, rev=None):
    """As `tick`, but the page did not run yet: what it shows is older than the ticks."""
    rev = sent(page)["seed_rev"] if rev is None else rev
    ticks = {"outline": outline_name(outline), "rev": rev, "paths": list(paths), "ranks": ranks or {}}
    page.session_state["tree"] = {"ticks": ticks}
    return page


def button(page, label):
    return next(b for b in page.button if b.label == label)


def counted(page):
    return next(c.value for c in page.caption if " trainable of " in c.value)


def test_the_card_says_plainly_which_weights_there_are(page, workspace):
    state = backbones.weights_state("ast-base", workspace)
    texts = [m.value.replace("\\", "") for m in (*page.markdown, *page.caption)]
    assert any((state.label or "pretrained weights not installed") in text for text in texts)
    assert any(state.message in text for text in texts)


def test_the_page_opens_with_the_recommended_set_ticked(page, outline):
    assert sent(page)["seed"] == list(targets.recommended_sets(outline)["attention+mlp"])
    assert counted(page).startswith("72 modules with LoRA, 1,359,400 trainable of 86,219,560")


def test_all_linear_with_the_head_by_lora_is_1333568(page):
    button(page, "All linear + head").click().run()
    assert page.session_state["bench.head"] == "lora"
    assert counted(page).startswith("73 modules with LoRA, 1,333,568 trainable of 86,219,560 parameters (1.55 %)")


def test_python_believes_only_what_can_be_ticked(page, outline):
    claims = [f"{LAYERS}.0.attention.q_proj", f"{LAYERS}.0.layernorm_before", f"{LAYERS}.0", "classifier.dense", "../x"]
    tick(page, outline, claims)
    assert not page.exception
    assert counted(page).startswith("1 module with LoRA, 44,584 ")
    honest = page.session_state["tree"]["ticks"]
    for nonsense in ("all", {"paths": [[]]}, {**honest, "rev": "x"}, {**honest, "paths": {}}, {**honest, "ranks": [8]}):
        page.session_state["tree"] = {"ticks": nonsense}
        page.run()
        assert not page.exception
        assert counted(page).startswith("1 module")
    tick(page, outline, [["x"], 7, None])
    assert counted(page).startswith("0 modules")


def test_python_believes_only_ranks_of_ticked_modules_that_fit_them(page, outline):
    q, k, v, o = (f"{LAYERS}.0.attention.{name}_proj" for name in "qkvo")
    fc1 = f"{LAYERS}.0.mlp.fc1"
    tick(page, outline, [q, k, v, o], {q: 16, k: 769, v: True, o: "9", fc1: 4, "x": 2})
    assert counted(page).startswith("4 modules with LoRA, ")
    button(page, "Launch with these targets").click().run()
    assert page.session_state[handover.TICKS].ranks == {q: 16}


@pytest.mark.parametrize("rank", [0, -1, 769, 10**30, 16.0, "16", None, [16], True])
def test_a_rank_that_does_not_fit_is_the_general_one(page, outline, rank):
    q = f"{LAYERS}.0.attention.q_proj"
    tick(page, outline, [q], {q: rank})
    assert not page.exception
    assert counted(page).startswith("1 module with LoRA, 44,584 ")
    tick(page, outline, [q], {q: 768})
    assert counted(page).startswith(f"1 module with LoRA, {768 * 1536 + 32_296:,} ")
    assert counted(page).endswith(" 1 separate rank.")


def test_a_rank_equal_to_the_general_one_is_none_of_its_own(page, outline):
    q = f"{LAYERS}.0.attention.q_proj"
    tick(page, outline, [q], {q: 16})
    assert counted(page).endswith(" 1 separate rank.")
    page.text_input(key="bench.r").set_value("16").run()
    assert counted(page).startswith(f"1 module with LoRA, {16 * 1536 + 32_296:,} ")
    assert "separate rank" not in counted(page)
    page.text_input(key="bench.r").set_value("4").run()
    assert counted(page).endswith(" 1 separate rank.")


def test_data_for_the_browser_stays_the_same_from_tick_to_tick(page, outline):
    before = written(page)
    tick(page, outline, [f"{LAYERS}.0.mlp.fc1"])
    tick(page, outline, [f"{LAYERS}.0.mlp.fc1", f"{LAYERS}.1.mlp.fc1"], {f"{LAYERS}.0.mlp.fc1": 3})
    assert written(page) == before


def test_ticks_from_before_a_ready_set_was_chosen_do_not_undo_it(page, outline):
    old = sent(page)["seed_rev"]
    button(page, "Attention").click().run()
    assert sent(page)["seed_rev"] > old
    tick(page, outline, [], rev=old)
    assert counted(page).startswith("48 modules")
    tick(page, outline, [])
    assert counted(page).startswith("0 modules")


def test_ticks_of_another_network_are_not_taken_for_this_one(page):
    tick(page, targets.load_outline("ast-mini"), [])
    assert counted(page).startswith("72 modules")


def test_an_unknown_backbone_in_the_address_is_named_with_the_nearest(page):
    page.query_params["variant"] = "ast-bsae"
    page.run()
    assert not page.exception
    assert "'ast-bsae'" in page.warning[0].value
    assert "ast-base" in page.warning[0].value


def test_rank_above_a_modules_width_and_nothing_to_train_forbid_the_launch(page, outline):
    page.text_input(key="bench.r").set_value("1000").run()
    assert "above the width" in page.error[0].value
    assert button(page, "Launch with these targets").disabled
    button(page, "Use the highest possible rank for 72 narrow modules").click().run()
    assert not page.error and not button(page, "Launch with these targets").disabled
    assert counted(page).endswith(" 72 separate ranks.")
    page.text_input(key="bench.r").set_value("8").run()
    page.session_state["bench.head"] = "freeze"
    tick(page, outline, [])
    assert "Nothing would train" in page.error[0].value
    assert button(page, "Launch with these targets").disabled


def test_ticks_are_handed_over_to_launch_with_head_rank_and_name(page, outline):
    page.text_input(key="bench.r").set_value("16").run()
    button(page, "Attention").click().run()
    q = f"{LAYERS}.3.attention.q_proj"
    tick(page, outline, targets.recommended_sets(outline)["attention"], {q: 32})
    button(page, "Launch with these targets").click().run()
    assert not page.exception
    assert page.title[0].value == "Launch"
    assert page.session_state[handover.TICKS] == Ticks(
        variant="ast-base",
        paths=targets.recommended_sets(outline)["attention"],
        ranks={q: 32},
        head="train",
        r=16,
        method="lora",
        name="attention",
    )


def test_ticks_of_an_earlier_run_come_back_from_launch_once(page, outline):
    held = Ticks(variant="ast-base", paths=(f"{LAYERS}.3.mlp.fc1",), head="freeze", r=4, method="lora")
    page.session_state[handover.TICKS] = held
    page.run()
    assert counted(page).startswith("1 module with LoRA, 15,360 ")
    tick(page, outline, [])
    assert "Nothing would train" in page.error[0].value


def test_ranks_of_an_earlier_run_come_back_from_launch(page, outline):
    q, k = (f"{LAYERS}.3.attention.{name}_proj" for name in "qk")
    held = Ticks(variant="ast-base", paths=(q, k), ranks={q: 2}, head="freeze", r=4, method="lora")
    page.session_state[handover.TICKS] = held
    page.run()
    assert counted(page).startswith(f"2 modules with LoRA, {(2 + 4) * 1536:,} ")
    assert sent(page)["seed_ranks"] == {q: 2}
    page.switch_page(str(PROJECT_ROOT / "pages" / "data.py")).run()
    page.switch_page(str(PROJECT_ROOT / "pages" / "backbones.py")).run()  # the browser has forgotten: told again
    assert sent(page)["seed_ranks"] == {q: 2}


def test_a_set_is_saved_loaded_and_deleted_by_name(page, outline, workspace):
    path = f"{LAYERS}.11.mlp.fc2"
    page.session_state["bench.head"] = "freeze"
    tick(page, outline, [path])
    next(t for t in page.text_input if t.label == "Name this selection").set_value("  top   fc2 ")
    button(page, "Save").click().run()
    assert not page.exception
    with Store.open(workspace) as store:
        saved = store.target_sets.all("ast-base")
    assert [(s.name, s.paths, s.head) for s in saved] == [("top fc2", (path,), "freeze")]
    button(page, "Attention").click().run()
    page.session_state["bench.head"] = "train"
    page.run()
    button(page, "Load").click().run()
    assert counted(page).startswith("1 module with LoRA, 30,720 ")
    assert page.session_state["bench.head"] == "freeze"
    page.button(key="delete_set").click().run()
    page.button(key="delete_set_not").click().run()
    assert not [one for one in page.button if one.key == "delete_set_now"]
    page.button(key="delete_set").click().run()
    page.button(key="delete_set_now").click().run()
    with Store.open(workspace) as store:
        assert store.target_sets.all("ast-base") == ()


def test_a_set_without_a_name_or_a_place_to_write_is_refused_in_a_sentence(page, monkeypatch):
    button(page, "Save").click().run()
    assert page.error[0].value == "Enter a name for the set."

    def refuse(*_):
        raise WorkspaceError("runs.db is read-only here.")

    monkeypatch.setattr(TargetSets, "save", refuse)
    next(t for t in page.text_input if t.label == "Name this selection").set_value("x")
    button(page, "Save").click().run()
    assert not page.exception
    assert page.error[0].value == "runs.db is read-only here."


def paste(page, text):
    page.text_area(key="pasted").set_value(text).run()
    assert not page.exception
    return page


def test_an_entry_that_matches_nothing_is_refused_with_the_nearest_names(page):
    paste(page, "q_proj, qurey")
    assert any("`qurey` matches nothing" in m.value and "`q_proj`" in m.value for m in page.markdown)
    assert "No match for 1 of 2 entries" in page.error[0].value
    assert button(page, "Tick these modules").disabled


def test_old_names_are_recognised_and_offered_in_todays(page):
    paste(page, "peft_target_modules:\n  - query\n  - key\n  - value\n  - output.dense\n")
    assert any("`query`: 12 modules. Old name, now q" in m.value for m in page.markdown)
    button(page, "Use current names").click().run()
    assert page.text_area(key="pasted").value.split("\n- ")[1:] == ["q_proj", "k_proj", "v_proj", "o_proj", "fc2\n"]
    button(page, "Tick these 60 modules").click().run()
    assert counted(page).startswith("60 modules")


def test_buttons_act_on_what_is_ticked_typed_and_chosen_when_they_are_clicked(page, outline):
    """A tick or a typed word and a click on a button can reach the server together."""
    q, k = (f"{LAYERS}.0.attention.{name}_proj" for name in "qk")
    paste(page, "query")
    page.text_area(key="pasted").set_value("key")
    button(page, "Use current names").click().run()
    assert page.text_area(key="pasted").value == "peft_target_modules:\n- k_proj\n"
    page.text_area(key="pasted").set_value("[q_proj, v_proj]")
    button(page, "Tick these 12 modules").click().run()
    assert counted(page).startswith("24 modules")
    page.text_area(key="pasted").set_value("no_such_module")
    button(page, "Tick these 24 modules").click().run()
    assert counted(page).startswith("24 modules") and "No match for 1 of 1 entries" in page.error[0].value

    tick(page, outline, [q])
    page.text_input(key="bench.r").set_value("1000").run()
    button(leave_ticks(page, outline, [q, k]), "Use the highest possible rank for 1 narrow module").click().run()
    assert counted(page).startswith("2 modules") and counted(page).endswith(" 2 separate ranks.")
    page.text_input(key="bench.r").set_value("8").run()

    for name, paths in (("one", [q]), ("two", [q, k])):
        tick(page, outline, paths)
        next(t for t in page.text_input if t.label == "Name this selection").set_value(name)
        button(page, "Save").click().run()
    page.session_state["saved set of ast-base"] = "one"
    button(page, "Load").click().run()
    assert counted(page).startswith("1 module ")


def test_a_list_that_names_the_head_puts_lora_on_it_and_repeats_the_known_count(page):
    paste(page, "[query, key, value, dense]")
    assert any("names the head (`classifier.dense`)" in c.value for c in page.caption)
    button(page, "Tick these 73 modules").click().run()
    assert counted(page).startswith("73 modules with LoRA, 1,333,568 trainable of 86,219,560")


def test_a_pasted_config_of_peft_sets_its_ranks_and_says_what_is_not_taken_over(page, outline):
    def captions():
        return [c.value for c in page.caption]

    paste(page, "peft_target_modules:\n- q_proj\n")
    assert not any("Ticking this list" in said or "Not taken over" in said for said in captions())
    paste(page, '{"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 32, "lora_dropout": 0.0, '
                '"rank_pattern": {"v_proj": 4, "layers.0.attention.q_proj": 2}, "use_dora": true}')  # fmt: skip
    assert "Ticking this list also sets rank 4 and a separate rank for 1 module." in captions()
    assert any(said.startswith("Not taken over: lora\\_alpha = 32, use\\_dora = True.") for said in captions())
    button(page, "Tick these 24 modules").click().run()
    assert not page.exception
    assert page.session_state["bench.r"] == "4"
    assert counted(page).startswith("24 modules with LoRA, ") and counted(page).endswith(" 1 separate rank.")
    assert sent(page)["seed_ranks"] == {f"{LAYERS}.0.attention.q_proj": 2}
    paste(page, "target_modules: [q_proj]\nrank_pattern: {fc1: 4}\n")
    assert any("The ranks of this list are not taken over." in said.value for said in page.warning)


def test_saving_a_set_says_which_settings_it_does_not_keep(page, outline):
    q = f"{LAYERS}.0.attention.q_proj"
    said = "A set keeps the modules and the head. It leaves method and rank open, so that it fits any run."
    assert said in [c.value for c in page.caption]
    page.session_state[handover.TICKS] = Ticks(
        variant="ast-base", paths=(q,), ranks={q: 2}, head="train", r=4, method="lora"
    )
    page.run()
    assert f"{said} It does not keep the 1 separate rank; Copy as YAML does." in [c.value for c in page.caption]


def test_names_of_ready_sets_and_text_that_is_no_list(page):
    paste(page, "attention+mlp")
    assert any("`attention+mlp`: 72 modules, a preset" in m.value for m in page.markdown)
    paste(page, "a: {b: c}")
    assert page.error


def test_yaml_to_copy_means_exactly_the_ticked_modules(page, outline):
    ticked = [f"{LAYERS}.{i}.attention.{name}_proj" for i in range(12) for name in "qv"]
    tick(page, outline, ticked)
    assert page.code[0].value == "peft_target_modules:\n- q_proj\n- v_proj"
    page.session_state["bench.head"] = "lora"
    page.run()
    text = page.code[0].value
    assert "dense" in text
    assert targets.resolve(outline, text.split("\n- ")[1:]).paths == (*ticked, "classifier.dense")


def test_yaml_to_copy_says_which_modules_have_a_rank_of_their_own(page, outline):
    q, k = (f"{LAYERS}.0.attention.{name}_proj" for name in "qk")
    tick(page, outline, [q, k], {k: 2})
    copied = yaml.safe_load(page.code[0].value)
    assert copied == {"peft_target_modules": [q, k], "rank_pattern": {k: 2}}
    assert any(c.value.endswith("All other modules have rank 8.") for c in page.caption)


def test_every_recommended_set_has_a_button_that_ticks_it(page, outline):
    for label, name in (("Attention", "attention"), ("Attention + MLP", "attention+mlp")):
        button(page, label).click().run()
        assert sent(page)["seed"] == list(targets.recommended_sets(outline)[name])
    assert len([b for b in page.button if (b.key or "").startswith("preset ")]) == 3


def bare_tree():
    """A page of nothing but the tree, told of blocked modules and of a method."""
    import streamlit as st

    from sousa_engine import targets
    from sousa_engine.core.methods import METHODS
    from sousa_engine.web.components.module_tree import module_tree as draw_tree

    outline = targets.load_outline("ast-base")
    blocked, method = st.session_state.get("blocked"), METHODS[st.session_state.get("method") or "lora"]
    start = [node.path for node in outline.nodes if node.role == "attention.query"]
    chosen = draw_tree(outline, start=start, r=8, head="train", num_classes=40, blocked=blocked, method=method)
    st.session_state["chosen"] = chosen


def bare(name, value):
    page = AppTest.from_function(bare_tree, default_timeout=60)
    page.session_state[name] = value
    return page.run()


def test_a_blocked_module_leaves_what_is_returned_and_comes_back_when_it_is_free(outline):
    q = [f"{LAYERS}.{i}.attention.q_proj" for i in range(12)]
    page = bare("blocked", {q[0]: "Not with this method.", q[3]: "Not with this method."})
    assert not page.exception
    tick(page, outline, q, {q[0]: 2, q[1]: 3})
    assert page.session_state["chosen"] == Choice(paths=tuple(q[1:3] + q[4:]), ranks={q[1]: 3})
    rows = [i for i, node in enumerate(outline.nodes) if node.path in (q[0], q[3])]
    assert sent(page)["blocked"] == {"Not with this method.": rows}
    page.session_state["blocked"] = {}
    page.run()
    assert page.session_state["chosen"] == Choice(paths=tuple(q), ranks={q[0]: 2, q[1]: 3})


@pytest.mark.parametrize(("method", "knows"), [("dora", True), ("lokr", True), ("ia3", False), ("adalora", False)])
def test_where_a_method_knows_no_rank_of_single_modules_none_is_returned(outline, method, knows):
    q = f"{LAYERS}.0.attention.q_proj"
    page = bare("method", method)
    tick(page, outline, [q], {q: 2})
    assert page.session_state["chosen"] == Choice(paths=(q,), ranks={q: 2} if knows else {})
    assert sent(page)["method"]["ranks"] is knows


def test_a_method_counts_its_own_parameters_and_greys_what_it_cannot_adapt(page):
    page.session_state["variant"] = "mn10_as"
    page.query_params["variant"] = "mn10_as"
    page.run()
    assert counted(page).startswith("46 modules with LoRA, ")
    page.selectbox(key="bench.method").set_value("pissa").run()
    assert counted(page).startswith("16 modules with PiSSA, ")
    assert any("PiSSA adapts Linear only" in reason for reason in sent(page)["blocked"])
    page.selectbox(key="bench.method").set_value("ia3").run()
    outline = targets.load_outline("mn10_as")
    paths = targets.recommended_sets(outline)["se+pointwise"]
    counts = targets.count(outline, paths, r=8, head="train", num_classes=40, method="ia3")
    assert counted(page).startswith(f"46 modules with IA3, {counts.trainable:,} trainable")
    assert page.text_input(key="bench.r").disabled and sent(page)["method"]["name"] == "ia3"
    button(page, "Launch with these targets").click().run()
    assert not page.exception and page.session_state[handover.TICKS].method == "ia3"
    assert page.session_state["launch.lora.method"] == "ia3"
