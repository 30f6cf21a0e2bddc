"""The grammar its users know: presets, dotted fields, numbers as people write them, typos answered."""

from __future__ import annotations

import pytest

from sousa_engine.core import grammar
from sousa_engine.core.errors import ConfigError, UnknownNameError


def test_the_readme_command_gives_the_draft_it_says():
    draft = grammar.parse(["model=ast-mini", "data=tiny", "training.max_epochs=10", "seed=3"])
    assert draft == {
        "model": {"variant": "ast-mini"},
        "data": {"dataset": "tiny"},
        "training": {"max_epochs": 10},
        "seed": 3,
    }


def test_a_field_wins_over_a_preset_wherever_it_stands():
    assert grammar.parse(["training.max_epochs=7", "training=quick"])["training"]["max_epochs"] == 7


@pytest.mark.parametrize(("text", "number"), [("5e-4", 5e-4), ("1E3", 1000.0), ("0.1", 0.1), ("2", 2)])
def test_numbers_are_read_as_people_write_them(text, number):
    assert grammar.parse([f"training.lr={text}"])["training"]["lr"] == number


def test_a_text_field_keeps_digits_as_text():
    assert grammar.parse(["name=007", "data=2024"]) == {"name": "007", "data": {"dataset": "2024"}}


def test_a_typo_is_answered_with_the_nearest_field():
    with pytest.raises(ConfigError, match=r"training\.max_epochs"):
        grammar.parse(["training.max_epoch=3"])


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="quick"):
        grammar.parse(["training=quik"])


@pytest.mark.parametrize("word", ["train", "=3", "seed"])
def test_a_word_without_a_value_is_refused(word):
    with pytest.raises(ConfigError, match="field=value"):
        grammar.parse([word])


@pytest.mark.parametrize(
    "text",
    [
        "query,key , value",
        "[query, key, value]",
        "- query\n- key\n- value",
        "peft_target_modules:\n- query\n- key\n- value\n",
        "model:\n  peft_target_modules: ['query', key, \"value\"]",
        "query key value",
    ],
)
def test_target_lists_are_read_however_they_are_pasted(text):
    assert grammar.entries(text) == ["query", "key", "value"]


def test_presets_all_parse_and_carry_help():
    for group in ("model", "training", "lora", "augment"):
        for name, text in grammar.presets(group).items():
            assert text, f"{group}/{name} has no help"
            assert grammar.parse([f"{group}={name}"])


@pytest.mark.parametrize(
    "draft",
    [
        {"model": {"variant": "007"}, "training": {"lr": 1e-05, "max_epochs": 10}, "seed": 3},
        {"data": {"dataset": "/a folder/clips.csv", "clip_s": None}, "name": "true"},
        {"lora": {"targets": ["q_proj", "a, b", "1e-3"], "rank_pattern": {"layers.0.q_proj": 4}}},
    ],
)
def test_the_words_of_a_draft_are_read_back_to_it(draft):
    assert grammar.parse(grammar.words(draft)) == draft


@pytest.mark.parametrize("value", ["core", "1e-3", "", "null", "[a", "a: b", 0.0005, 8, True, None, [], ["a", 2]])
def test_a_written_value_is_read_back(value):
    assert grammar.value(grammar.written(value)) == value


def test_a_preset_that_was_changed_by_its_reader_is_whole_for_the_next():
    grammar.preset("lora", "attention")["lora"]["targets"].append("se")
    assert grammar.preset("lora", "attention")["lora"]["targets"] == ["attention"]
