"""Clones: runs that are queued again, as they were or changed."""

from __future__ import annotations

import pytest

from sousa_engine.core import config, grammar
from sousa_engine.core.errors import ConfigError, PreflightError
from sousa_engine.runs import orders, prepare


def test_a_clone_has_the_settings_of_its_run_but_what_was_changed(workspace, store, ensured):
    words = ["data=micro", "seed=3", "lora.targets=[q_proj]", "training.max_epochs=4", "name=mine"]
    first = orders.start(workspace, prepare.prepare(grammar.parse(words)).config, created_by="cli")
    (same,) = orders.clone(workspace, [first], created_by="cli")
    assert same.id != first.id and same.config == first.config and len(ensured) == 2
    (other,) = orders.clone(workspace, [first], ["seed=9", "lora.targets=attention"], created_by="cli")
    changed = config.differences([first.config, other.config])
    assert set(changed) == {"seed", "lora.targets", "lora.target_set"} and other.config.lora.target_set == "attention"
    (moved,) = orders.clone(workspace, [first], ["model=beats-mini"], created_by="cli")
    assert moved.config.model.variant == "beats-mini" and moved.config.lora.targets


def test_of_several_clones_all_are_queued_or_none(workspace, store, ensured):
    config = prepare.prepare({"data": {"dataset": "micro"}}).config
    good = store.runs.enqueue(config)
    bad = store.runs.enqueue(config.model_copy(update={"device": "cuda:77"}))
    with pytest.raises(PreflightError, match=rf"{bad.id} \(.*cuda:77 is not available on this machine"):
        orders.clone(workspace, [good, bad], created_by="cli")
    with pytest.raises(ConfigError, match=r"training\.lr"):
        orders.clone(workspace, [good], ["training.lr=-1"], created_by="cli")
    assert len(store.runs.all()) == 2 and not ensured
