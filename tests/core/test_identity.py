"""What a run reads: equal keys for configs that train the same network, other keys for all others."""

import pytest

from sousa_engine.core import config as configs
from sousa_engine.core import identity
from sousa_engine.core.methods import METHODS

Q = {"path": "layers.0.q_proj", "kind": "Linear", "shape": (192, 192)}
V = {"path": "layers.0.v_proj", "kind": "Linear", "shape": (192, 192)}


def made(**values):
    lora = {"targets": [Q, V], **values.pop("lora", {})}
    return configs.build({"lora": lora, **values})


def key(**values):
    return identity.key(made(**values))


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_of_a_method_counts_where_the_method_reads_it_and_nowhere_else(name):
    targets = {} if METHODS[name].takes_targets else {"targets": []}
    others = {"r": 4, "alpha": 3.0, "dropout": 0.2, "plus_ratio": 8.0, "rank_pattern": {"layers.0.q_proj": 2}}
    for field, value in others.items():
        if field == "rank_pattern" and not METHODS[name].takes_ranks:
            continue  # refused
        differs = key(lora={"method": name, **targets, field: value}) != key(lora={"method": name, **targets})
        assert differs == (field in METHODS[name].settings), field


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"lora": {"target_set": "attention"}}, {"lora": {"target_set": "late"}}),
        ({"lora": {"targets": [Q, V]}}, {"lora": {"targets": [V, Q]}}),
        ({"lora": {"rank_pattern": {"layers.0.q_proj": 8}}}, {}),
        ({"lora": {"targets": [], "r": 4, "method": "dora"}, "training": {"lr": 1e-3}}, {"lora": {"targets": []}}),
        ({"lora": {"head": "freeze"}, "training": {"head_lr": 1e-3}}, {"lora": {"head": "freeze"}}),
        ({"name": "mine", "seed": 7, "device": "cpu", "wandb": {"mode": "offline"}, "data": {"strict": True}}, {}),
    ],
    ids=["the name of the set", "order", "a rank that all have", "a probe", "a frozen head", "about the run"],
)
def test_what_changes_no_network_changes_no_key(one, two):
    assert key(**one) == key(**two)


@pytest.mark.parametrize(
    "values",
    [
        {"lora": {"targets": [Q]}},
        {"lora": {"targets": [], "head": "lora"}},
        {"lora": {"head": "freeze"}},
        {"model": {"weights": "random"}},
        {"model": {"variant": "beats-mini"}},
        {"data": {"dataset": "micro"}},
        {"data": {"clip_s": 1.5}},
        {"augment": {"shift": 0.0}},
        {"training": {"precision": "bf16"}},
        {"training": {"lr": 0.00200001}},
    ],
)
def test_what_changes_the_network_changes_the_key(values):
    assert key(**values) != key()


def test_every_field_of_a_run_is_read_or_named_as_unread():
    config = made()
    fields = {name for name, _ in configs.fields()}
    assert set(identity.read_by(config)) | identity.unread(config) | {"seed"} == fields


def test_content_takes_the_place_of_the_fields_that_select_it():
    here, there = made(data={"dataset": "/a"}), made(data={"dataset": "/b", "split_seed": 3})
    assert identity.key(here) != identity.key(there)
    assert identity.key(here, "content") == identity.key(there, "content") != identity.key(here, "other content")
