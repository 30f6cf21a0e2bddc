"""The Launch page: sound defaults, every fault under its own field, a Start button that says what is missing."""

from __future__ import annotations

import shlex

import bad_audio
import pytest
from streamlit.testing.v1 import AppTest

from sousa_engine import targets
from sousa_engine.core import config, grammar
from sousa_engine.core.config import DataConfig
from sousa_engine.data import scan
from sousa_engine.runs import ensure, prepare
from sousa_engine.store import Store
from sousa_engine.web import drafts, fields, handover
from sousa_engine.web.handover import Draft, Ticks
from sousa_engine.workspace import PROJECT_ROOT


@pytest.fixture
def page(workspace, monkeypatch):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    monkeypatch.setattr(ensure, "ensure", lambda workspace: None)
    at = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=60)
    at.switch_page(str(PROJECT_ROOT / "pages" / "launch.py"))
    return at


def start_button(at):
    return next(b for b in at.button if b.label == "Start training" or b.label.startswith("Fix to start: "))


def test_the_defaults_can_be_started_at_once(page, workspace):
    page.run()
    assert not page.exception
    assert start_button(page).label == "Start training" and not start_button(page).disabled
    assert any("python -m sousa_engine train model=ast-mini data=tiny" in c.value for c in page.code)
    start_button(page).click().run()
    with Store.open(workspace) as store:
        (run,) = store.runs.all()
    assert run.config == prepare.prepare({}).config
    assert page.query_params["id"] == run.id


def test_ten_clicks_make_one_run_and_a_new_visit_another(page, workspace):
    """Clicks that a tab sent before it showed the next page reach Launch one after another."""
    page.run()
    start_button(page).click()
    form, clicked = page._page_hash, page._tree.get_widget_states()
    for _ in range(10):
        page._page_hash = form
        page._run(clicked)
        assert not page.exception and page.title[0].value != "Launch"
    with Store.open(workspace) as store:
        (run,) = store.runs.all()
    for _ in range(2):  # meant each time, though nothing was changed
        page.switch_page(str(PROJECT_ROOT / "pages" / "launch.py"))
        start_button(page.run()).click().run()
    with Store.open(workspace) as store:
        assert len(store.runs.all()) == 3 and store.runs.get(run.id) == run


@pytest.mark.parametrize(
    ("key", "value", "label", "said"),
    [
        ("launch.lora.r", "0", "Rank r", "Rank r must be at least 1 (you entered 0)."),
        ("launch.lora.r", "4000", "Rank r", "Rank r must be at most 1,024 (you entered 4000)."),
        ("launch.lora.r", "500", "Rank r", "Rank r = 500 is above the width"),
        ("launch.training.lr", "-1", "Learning rate", "Learning rate must be above 0 (you entered -1)."),
        ("launch.training.lr", "fast", "Learning rate", "Learning rate must be a number such as 0.002 or 2e-3 (you"),
        ("launch.training.head_lr", "{", "Head learning rate", "Head learning rate must be a number such as"),
        ("launch.training.max_epochs", "0", "Epochs", "Epochs must be at least 1 (you entered 0)."),
        ("launch.training.max_epochs", "1.5", "Epochs", "Epochs must be a whole number (you entered '1.5')."),
        ("launch.lora.alpha", "1,000", "Alpha", "Alpha must be a number without thousands separators, such as 1000"),
        ("launch.seed", "-1", "Seed", "Seed must be at least 0 (you entered -1)."),
        ("launch.seed", str(2**31), "Seed", "Seed must be at most 2,147,483,647 (you entered 2147483648)."),
    ],
)
def test_a_value_out_of_bounds_is_said_below_its_field_and_blocks_the_start(page, key, value, label, said):
    page.session_state[key] = value
    page.run()
    assert not page.exception
    assert any(error.value.startswith(said) for error in page.error)
    assert start_button(page).disabled and label in start_button(page).label


def test_a_decimal_comma_is_a_decimal_point_and_the_text_stays_as_typed(page):
    page.run()
    page.text_input(key="launch.lora.alpha").set_value("12,5").run()
    page.text_input(key="launch.training.weight_decay").set_value("0,02").run()
    assert page.text_input(key="launch.lora.alpha").value == "12,5"
    command = next(code.value for code in page.code if " train " in code.value)
    assert "lora.alpha=12.5" in command and "training.weight_decay=0.02" in command


def test_another_backbone_brings_its_own_defaults_and_leaves_what_was_set_by_hand(page):
    page.run()
    page.text_input(key="launch.training.lr").set_value("0.007").run()
    page.selectbox(key="launch.model.variant").set_value("ast-base").run()
    wanted = prepare.prepare(grammar.parse(["model=ast-base"])).config.training
    assert page.text_input(key="launch.training.batch_size").value == str(wanted.batch_size) == "8"
    assert page.text_input(key="launch.training.head_lr").value == f"{wanted.head_lr:g}" == "0.001"
    assert page.text_input(key="launch.training.lr").value == "0.007"
    page.selectbox(key="launch.model.variant").set_value("ast-mini").run()
    assert page.text_input(key="launch.training.batch_size").value == "16"


def test_own_data_without_a_path_is_asked_for(page):
    page.run()
    page.selectbox(key="launch.data").select_index(-1).run()
    page.selectbox(key="launch.data").set_value(fields.OWN_DATA).run()
    assert start_button(page).disabled and "Data set" in start_button(page).label
    page.text_input(key="launch.data.dataset").set_value("/no/such/folder").run()
    assert not page.exception
    assert any("/no/such/folder" in error.value for error in page.error)


def test_an_error_that_names_a_data_set_is_text(page):
    page.query_params["dataset"] = "./<b>[x](http://evil.example)"
    page.run()
    (error,) = page.error
    assert r"\<b\>\[x\](" in error.value and "[x](" not in error.value.replace(r"\[x\](", "")


def test_ticks_of_the_module_tree_arrive(page):
    paths = tuple(n.path for n in targets.load_outline("ast-base").nodes if n.role == "attention.query")
    page.session_state[handover.TICKS] = Ticks(variant="ast-base", paths=paths, head="freeze", r=4, method="lora")
    page.run()
    assert not page.exception
    assert page.selectbox(key="launch.model.variant").value == "ast-base"
    assert page.text_input(key="launch.lora.r").value == "4"
    assert any("q_proj" in c.value or "query" in c.value for c in page.code)


def test_random_weights_are_marked_as_a_control(page):
    page.run()
    page.selectbox(key="launch.weights_kind").set_value("random").run()
    assert any("Random weights" in text.value for text in page.text)
    assert not start_button(page).disabled


def test_settings_of_a_run_fill_the_form(page):
    wanted = prepare.prepare(
        {"seed": 7, "training": {"lr": 5e-4}, "data": {"dataset": "small"}, "lora": {"r": 3}}
    ).config
    page.session_state[handover.DRAFT] = Draft(settings=wanted)
    page.run()
    assert not page.exception
    assert page.text_input(key="launch.seed").value == "7"
    assert page.text_input(key="launch.training.lr").value == "0.0005"
    assert any("seed=7" in c.value and "data=small" in c.value for c in page.code)


def test_settings_of_a_run_come_back_whole_and_with_all_their_digits(page):
    rates = {"lr": 0.00010089882250230275, "head_lr": 0.0012520653814999472, "weight_decay": 0.0123456789}
    data = {"dataset": "micro", "clip_s": 1.25, "valid_fraction": 0.21, "test_fraction": 0.17, "split_seed": 5}
    wanted = prepare.prepare({"training": rates, "lora": {"alpha": 12.345678901}, "data": data}).config
    page.session_state[handover.DRAFT] = Draft(settings=wanted)
    page.run()
    command = next(code.value for code in page.code if " train " in code.value)
    again = prepare.prepare(grammar.parse(shlex.split(command)[4:])).config
    assert config.differences([wanted, again]) == {}


def test_what_is_changed_after_a_run_filled_the_form_stays_changed(page):
    page.run()  # the form held the defaults before
    wanted = prepare.prepare({"model": {"weights": "random"}, "lora": {"targets": ["q_proj"]}}).config
    page.session_state[handover.DRAFT] = Draft(settings=wanted)
    page.run()
    assert page.selectbox(key="launch.weights_kind").value == "random"
    assert any("model.weights=random" in c.value and "q_proj" in c.value for c in page.code)
    page.selectbox(key="launch.set").set_value("none").run()
    assert page.selectbox(key="launch.set").value == "none"
    page.selectbox(key="launch.model.variant").set_value("beats-mini").run()
    assert page.selectbox(key="launch.model.variant").value == "beats-mini"


def test_a_saved_target_set_can_be_chosen(page, workspace):
    path = targets.recommended_sets(targets.load_outline("ast-mini"))["attention"][0]
    with Store.open(workspace) as store:
        store.target_sets.save("my one", "ast-mini", [path], "train")
    page.run()
    page.selectbox(key="launch.set").set_value("saved:my one").run()
    assert not page.exception
    assert any("lora.target_set=my one" in c.value or "'lora.target_set=my one'" in c.value for c in page.code)


def test_a_data_set_in_the_address_is_chosen(page):
    page.query_params["dataset"] = "small"
    page.run()
    assert not page.exception
    assert page.selectbox(key="launch.data").value == "small"


def test_a_method_shows_the_fields_it_reads_and_no_others(page, workspace):
    page.run()
    shown = {"lora": {"r", "alpha", "dropout"}, "loraplus": {"r", "alpha", "dropout", "plus_ratio"}, "ia3": set(),
             "lokr": {"r", "alpha"}, "full": set()}  # fmt: skip
    for method, settings in shown.items():
        page.selectbox(key="launch.lora.method").set_value(method).run()
        assert not page.exception
        keys = {n.key.rpartition(".")[2] for n in page.text_input if n.key.startswith("launch.lora.")}
        assert keys == settings, method
        assert any(s.key == "launch.set" for s in page.selectbox) == (method != "full")
        assert not start_button(page).disabled
    start_button(page).click().run()
    with Store.open(workspace) as store:
        (run,) = store.runs.all()
    assert (run.config.lora.method, run.config.lora.targets) == ("full", ())


def test_ranks_of_the_tree_arrive_and_leave_with_the_ticks(page, workspace):
    paths = [node.path for node in targets.load_outline("ast-mini").nodes if node.name == "q_proj"]
    page.session_state[handover.TICKS] = Ticks(
        variant="ast-mini", paths=tuple(paths), ranks={paths[1]: 3}, method="rslora", r=4, head="train"
    )
    page.run()
    assert any(c.value == "1 module has a separate rank, set in the tree." for c in page.caption)
    start_button(page).click().run()
    with Store.open(workspace) as store:
        (run,) = store.runs.all()
    assert run.config.lora.ranks == {paths[1]: 3} and run.config.lora.method == "rslora"


def test_a_fact_has_an_i_and_what_is_to_be_weighed_a_triangle(page):
    page.session_state["launch.set"] = "none"
    page.session_state["launch.weights_kind"] = "random"
    page.run()
    marks = [mark.value for mark in page.markdown if "**Targets**" in mark.value or "**Weights**" in mark.value]
    assert marks == [":orange[:material/warning:] **Weights**", ":gray[:material/info:] **Targets**"]


def test_strict_is_a_switch_beside_a_path_of_ones_own_and_refuses_bad_files(page, workspace, tmp_path):
    drums = bad_audio.write_all(tmp_path / "drums")
    scan.scan(DataConfig(dataset=str(drums)), workspace)
    page.query_params["dataset"] = str(drums)
    page.run()
    assert not page.exception and not start_button(page).disabled
    assert any("files are left out" in text.value for text in page.text)
    page.toggle(key="launch.data.strict").set_value(True).run()
    assert start_button(page).disabled
    assert any("errors, and strict mode" in text.value and "data.strict=false" in text.value for text in page.text)
    page.selectbox(key="launch.data").set_value("micro").run()
    assert not start_button(page).disabled and not any(t.key == "launch.data.strict" for t in page.toggle)


def opened(page, draft):
    """The page in a new session, at an address with this draft."""
    page.query_params["draft"] = draft
    page.run()
    assert not page.exception
    return page


def link(page, **state):
    """The draft in the address after these widgets were filled in."""
    page.run()
    for name, value in state.items():
        key = f"launch.{name.replace('__', '.')}"
        page.session_state[key] = type(page.session_state[key])(value)
    page.run()
    assert not page.exception
    return address(page)


def address(page):
    """The draft in the address."""
    found = page.query_params["draft"]
    return found if isinstance(found, str) else found[0]


def test_what_was_typed_is_in_the_address_and_fills_the_form_of_a_new_session(page, visit):
    bad = "7e-4,"  # what cannot be used yet is kept too
    found = link(page, name="mine", training__lr=bad, training__max_epochs=3, model__variant="beats-mini", lora__r=4)
    other = visit("launch", draft=found)
    held = {name: other.session_state[f"launch.{name}"] for name in ("name", "training.lr", "model.variant", "lora.r")}
    assert held == {**held, "name": "mine", "training.lr": bad, "model.variant": "beats-mini"}
    assert int(held["lora.r"]) == 4
    assert address(other).partition(".")[0] == found.partition(".")[0] and not other.warning
    assert drafts.unpack(found).keys() == {"name", "training.lr", "training.max_epochs", "model.variant", "lora.r"}


def come_back(page, old):
    """Back to an address of this session, as if another page had been opened in between."""
    page.session_state["known addresses"] = ()
    opened(page, old)


def test_back_to_an_address_older_than_what_was_typed_shows_what_was_typed(page):
    """Whoever leaves right after typing leaves an address without the newest value."""
    old = link(page, name="mine")
    new = link(page, seed="5")
    assert new != old and new.partition(".")[2] == old.partition(".")[2]
    come_back(page, old)
    assert page.session_state["launch.seed"] == "5" and page.session_state["launch.name"] == "mine"
    assert address(page) == new


def test_back_to_an_earlier_visit_shows_what_the_form_held_then(page):
    before = link(page, name="mine")
    first = link(page, seed="5")
    come_back(page, "")  # by the link to Launch: the form still holds its values
    second = link(page, seed="6")
    assert first.partition(".")[2] != second.partition(".")[2]
    come_back(page, before)
    assert page.session_state["launch.seed"] == "5" and address(page) == first
    come_back(page, second)
    assert page.session_state["launch.seed"] == "6"


def test_back_to_a_form_that_was_started_or_reset_fills_it_as_it_was_left(page):
    old = link(page, name="mine")
    page.button(key="launch.reset").click().run()
    come_back(page, "")
    come_back(page, old)
    assert page.session_state["launch.name"] == "" and "draft" not in page.query_params
    started = link(page, name="mine")
    start_button(page).click().run()
    page.switch_page(str(PROJECT_ROOT / "pages" / "launch.py")).run()
    come_back(page, started)
    assert page.session_state["launch.name"] == "mine"


def test_a_field_that_holds_the_default_of_another_backbone_is_part_of_the_draft(page, visit):
    page.run()
    usual = page.session_state["launch.training.lr"]
    link(page, model__variant="ast-base")
    assert page.session_state["launch.training.lr"] != usual
    found = link(page, training__lr=usual)
    assert visit("launch", draft=found).session_state["launch.training.lr"] == usual


def test_ticked_modules_are_part_of_the_draft(page, visit):
    outline = targets.load_outline("ast-mini")
    paths = targets.recommended_sets(outline)["attention"][:3]
    ticks = Ticks(variant="ast-mini", paths=paths, ranks={paths[0]: 3}, r=8, head="train", method="lora")
    page.session_state[handover.TICKS] = ticks
    found = link(page)
    other = visit("launch", draft=found)
    assert other.session_state[handover.TICKS] == ticks and other.session_state["launch.set"] == "ticks"
    gone = drafts.unpack(found)
    gone["ticks"]["paths"].append("no.such.module")
    other = visit("launch", draft=drafts.pack(gone))
    assert other.session_state[handover.TICKS].paths == paths and "no.such.module" in other.warning[0].value


def test_values_that_do_not_fit_are_left_out_and_named_and_the_others_are_kept(page):
    bad = {
        "name": "mine", "model.variant": ["ast-mini"], "lora.head": "tail", "data.strict": 3, "seed": [1], "set": {},
        "training.lr": None, "ticks": 5, "no.field": 1, "device": "cuda:99",
    }  # fmt: skip
    opened(page, drafts.pack(bad))
    assert page.session_state["launch.name"] == "mine" and start_button(page).label == "Start training"
    said = page.warning[0].value
    for label in ("Backbone", "Head", "Learning rate", "Seed", "Device", "no.field", "Ticked modules"):
        assert label in said.replace("\\", ""), label
    opened(page, "cut")
    assert page.session_state["launch.name"] == "" and "cannot be read" in page.warning[0].value


def test_the_form_is_empty_after_a_reset_and_after_a_start(page):
    link(page, name="mine", training__max_epochs=3)
    page.button(key="launch.reset").click().run()
    assert not page.exception and "draft" not in page.query_params and page.session_state["launch.name"] == ""
    assert page.button(key="launch.reset").disabled
    link(page, name="mine")
    start_button(page).click().run()
    page.switch_page(str(PROJECT_ROOT / "pages" / "launch.py")).run()
    assert not page.exception and page.session_state["launch.name"] == "" and "draft" not in page.query_params


def test_every_field_has_a_widget_and_is_part_of_the_draft(page):
    """A field without a widget would be lost by Edit and launch, and one that is not in the draft by a reload."""
    page.session_state["launch.data"] = fields.OWN_DATA
    page.session_state["launch.weights_kind"] = "file"
    page.session_state["launch.model.weights"] = "/nowhere"
    page.run()
    names = {name for name, _ in config.fields()}
    boxes = (*page.selectbox, *page.toggle, *page.text_input)
    assert names - {one.key.removeprefix("launch.") for one in boxes} == {
        "lora.targets", "lora.target_set", "lora.rank_pattern",  # launch.set and the ticks hold these
        "lora.plus_ratio",  # of another method
    }  # fmt: skip
    drawn = {one.key.removeprefix("launch.") for one in page.text_input} & names
    for name in drawn:
        value = page.session_state[f"launch.{name}"]
        page.session_state[f"launch.{name}"] = f"{value}1" if isinstance(value, str) else value + 1
    assert drawn <= drafts.unpack(link(page)).keys()
