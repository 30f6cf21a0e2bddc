"""The config's fields: one label and one line of help for forms, errors and the command line."""

from __future__ import annotations

import pytest

from sousa_engine.core import config


def test_every_field_has_help_and_a_label_that_no_other_field_has():
    names = [name for name, _ in config.fields()]
    assert all(config.field_help(name) for name in names)
    labels = [config.field_label(name) for name in names]
    assert len(set(labels)) == len(labels) and not set(names) & set(labels)


def test_help_is_a_sentence_that_keeps_its_capitals():
    assert config.field_help("training.lr") == "Peak learning rate of the adapters (AdamW)."


def test_a_field_with_few_values_lists_them():
    assert config.field_options("training.precision") == ("float32", "bf16")
    assert config.field_options("lora.head") == tuple(config.HEAD_TITLES)
    assert config.field_options("lora.r") == ()


@pytest.mark.parametrize(
    ("values", "field", "message", "labelled"),
    [
        (
            {"training": {"max_epochs": 0}},
            "training.max_epochs",
            "training.max_epochs must be at least 1 (you entered 0).",
            "Epochs must be at least 1 (you entered 0).",
        ),
        (
            {"seed": 2**31},
            "seed",
            "seed must be at most 2,147,483,647 (you entered 2147483648).",
            "Seed must be at most 2,147,483,647 (you entered 2147483648).",
        ),
        (
            {"training": {"lr": 0.0}},
            "training.lr",
            "training.lr must be above 0 (you entered 0).",
            "Learning rate must be above 0 (you entered 0).",
        ),
        (
            {"device": "gpu"},
            "device",
            "'gpu' is not a device. Use auto, cpu, mps or cuda:0.",
            "'gpu' is not a device. Use auto, cpu, mps or cuda:0.",
        ),
    ],
)
def test_an_invalid_value_is_a_sentence_about_its_field(values, field, message, labelled):
    assert config.problems(values) == {field: message}
    assert config.with_label(field, message) == labelled
