"""A selection of modules: what a method or a rank forbids, and names that mean exactly these modules."""

import json

import pytest
import yaml

from sousa_engine import targets
from sousa_engine.core.methods import METHODS

LAYERS = "audio_spectrogram_transformer.layers"
Q, K = (f"{LAYERS}.0.attention.{name}_proj" for name in "qk")


@pytest.fixture(scope="module")
def ast():
    return targets.load_outline("ast-base")


@pytest.fixture(scope="module")
def mini():
    return targets.load_outline("ast-mini")


def test_a_method_says_of_each_module_why_it_cannot_adapt_it(ast):
    assert targets.not_adaptable(ast, METHODS["lora"]) == {}
    blocked = targets.not_adaptable(ast, METHODS["pissa"])
    assert {ast.node(path).kind for path in blocked} == {"Conv2d"}
    assert set(blocked.values()) == {"PiSSA adapts Linear only, not Conv2d."}


def test_only_modules_narrower_than_their_rank_get_the_highest_one(ast):
    assert targets.highest_ranks(ast, [Q, K], {}, 768) == {}
    assert targets.highest_ranks(ast, [Q, K], {}, 1000) == {Q: 768, K: 768}
    assert targets.highest_ranks(ast, [Q, K], {Q: 4}, 1000) == {K: 768}
    assert targets.highest_ranks(ast, [Q, K], {Q: 769}, 8) == {Q: 768}


def test_names_are_shared_only_if_they_mean_the_same_in_every_outline(ast, mini):
    in_mini = [node.path for node in mini.nodes if node.name == "q_proj"]
    assert targets.shared_names([mini], in_mini) == ["q_proj"]
    assert targets.shared_names([mini, ast], in_mini) == in_mini
    assert targets.has_all(ast, in_mini) and targets.has_all(mini, in_mini)
    assert not targets.has_all(mini, [f"{LAYERS}.11.attention.q_proj"])


def test_old_names_become_current_ones_and_others_stay(ast):
    entries = ["query", "o_proj", "key", "q_proj"]
    assert targets.current_names(entries, targets.resolve(ast, entries)) == ["q_proj", "o_proj", "k_proj"]


def test_a_selection_as_yaml_holds_its_separate_ranks(ast):
    assert targets.selection_yaml(ast, [Q, K], {}) == targets.names_yaml([Q, K])
    text = targets.selection_yaml(ast, [Q, K], {K: 2})
    assert yaml.safe_load(text) == {"peft_target_modules": [Q, K], "rank_pattern": {K: 2}}


def test_the_settings_next_to_a_pasted_list_are_found_however_deep_they_are():
    block = {"target_modules": ["q_proj"], "r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "rank_pattern": {"fc1": 4}}
    block |= {"bias": "none", "use_rslora": False, "init_lora_weights": True, "task_type": None}
    for text in (json.dumps(block), f"model:\n  peft: {json.dumps(block)}\n"):
        found = targets.pasted_settings(text)
        assert (found.r, found.ranks, found.others) == (16, {"fc1": 4}, {"lora_alpha": 32})
    for text in ("q_proj, v_proj", "[q_proj]", "", "{", "r: 4", '{"targets": ["a"], "r": true, "rank_pattern": [1]}'):
        assert targets.pasted_settings(text) == targets.PastedSettings()
