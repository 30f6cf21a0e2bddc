"""Every way to fine-tune, on every embedded backbone: what it promises before, during and after training."""

import copy
import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from sousa_engine import backbones, targets
from sousa_engine.core import config
from sousa_engine.core.config import LoraConfig
from sousa_engine.core.errors import ConfigError
from sousa_engine.core.methods import METHODS
from sousa_engine.targets import load_outline
from sousa_engine.training import adapters
from sousa_engine.training.adapters import BaseTunerLayer
from sousa_engine.training.statistics import measure_statistics

CLASSES = 6
VARIANTS = [name for name, variant in backbones.VARIANTS.items() if variant.embedded]
WITH_TARGETS = [name for name, method in METHODS.items() if method.takes_targets]
EVERY = [(variant, method) for variant in VARIANTS for method in WITH_TARGETS]


@functools.cache
def original(variant):
    network = backbones.open_network(variant, num_classes=CLASSES, weights="random", workspace=None)
    measure_statistics(network.module, batch(variant).numpy(), np.arange(3), batch_size=3)
    return network


def built(variant):
    """A network of its own, as random as the next one."""
    return dataclasses.replace(original(variant), module=copy.deepcopy(original(variant).module))


def adaptable(variant, method, r=4):
    """Every module of the tree that this method can adapt at this rank."""
    outline, how = load_outline(variant), METHODS[method]
    nodes = [n for n in outline.nodes if n.adaptable and not outline.in_head(n.path) and not how.reason(n.kind)]
    return tuple(target for target in outline.targets(node.path for node in nodes) if target.width >= r)


def asked(variant, method, r=4, **settings):
    return LoraConfig(method=method, targets=adaptable(variant, method, r), r=r, **settings)


def batch(variant, clips=3, frames=130):
    spec = backbones.variant(variant).front_end
    scale = 20.0 if spec.kind == "htsat" else 2 * spec.std
    noise = torch.randn(clips, frames, spec.mel_bins, generator=torch.Generator().manual_seed(1))
    return spec.mean + scale * noise - (40.0 if spec.kind == "htsat" else 0.0)


def logits(module, variant):
    with torch.no_grad():
        return module.eval()(features=batch(variant))


def train(module, network, variant, steps=3, **rates):
    rates = {"lr": 1e-2, "head_lr": 1e-2, "weight_decay": 0.01} | rates
    optimiser = torch.optim.AdamW(adapters.parameter_groups(module, network.head_path, **rates))
    module.train()
    for step in range(1, steps + 1):
        loss = cross_entropy(module(features=batch(variant)), torch.arange(3))
        added = adapters.extra_loss(module)
        (loss if added is None else loss + added).backward()
        optimiser.step()
        adapters.after_step(module, step)
        if step < steps:
            optimiser.zero_grad()
    return module


class Trained:
    """A variant with a method on everything it can adapt, before and after three steps."""

    def __init__(self, variant, method):
        self.variant, self.method, self.network = variant, method, built(variant)
        self.plain = copy.deepcopy(self.network.module)
        self.before = logits(self.plain, variant)
        self.module = adapters.attach(self.network, asked(variant, method))
        self.at_start = logits(self.module, variant)
        self.counts = adapters.counts(self.module)
        self.untrained = {name: p.detach().clone() for name, p in self.module.named_parameters() if p.requires_grad}
        train(self.module, self.network, variant)
        self.after = logits(self.module, variant)


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def trained(request):
    return Trained(*request.param)


def test_it_changes_nothing_at_first_counts_as_promised_and_every_target_learns(trained):
    variant, method = trained.variant, trained.method
    atol = 2e-3 if method == "pissa" else 1e-5
    torch.testing.assert_close(trained.at_start, trained.before, atol=atol, rtol=1e-4)
    counts = targets.count(
        load_outline(variant), [t.path for t in adaptable(variant, method)], r=4, head="train",
        num_classes=CLASSES, method=method,
    )  # fmt: skip
    assert trained.counts == (counts.trainable, counts.total, counts.layers)
    after = dict(trained.module.named_parameters())
    stuck = [name for name, value in trained.untrained.items() if torch.equal(value, after[name])]
    if method == "adalora":  # ranks it gave away stay at zero
        stuck = [name for name in stuck if ".lora_E." not in name]
    assert not stuck


def test_after_training_it_saves_loads_and_merges_to_the_same_logits(trained, tmp_path):
    variant, plain, wanted = trained.variant, trained.plain, trained.after
    assert (wanted - trained.before).abs().max() > 1e-3
    adapters.save(trained.module, tmp_path / "adapter")
    close = {"atol": 2e-3, "rtol": 1e-3} if trained.method == "pissa" else {"atol": 1e-5, "rtol": 1e-5}

    from peft import PeftModel

    opened = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(opened, variant), wanted, **close)
    fresh = dataclasses.replace(trained.network, module=copy.deepcopy(plain))
    torch.testing.assert_close(logits(adapters.load(fresh, tmp_path / "adapter"), variant), wanted, **close)
    merged = adapters.merge(copy.deepcopy(trained.module))
    torch.testing.assert_close(logits(merged, variant), wanted, atol=1e-5, rtol=1e-4)


def moved(module):
    """As if trained, and in no time: every trainable value is another one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def materialised(plain, module, path):
    """||merged - original|| / ||original|| of one weight."""
    before, after = (m.get_submodule(path).weight.detach().double() for m in (plain, module))
    return ((after - before).norm() / before.norm()).item()


@pytest.mark.parametrize("method", WITH_TARGETS)
@pytest.mark.parametrize("variant", ["ast-mini", "beats-mini"])  # linear, convolution, embedding
def test_update_norms_are_those_of_merged_minus_original_and_zero_before_the_first_step(variant, method):
    network = built(variant)
    plain = copy.deepcopy(network.module)
    module = adapters.attach(network, asked(variant, method, alpha=10))
    paths = [target.path for target in adaptable(variant, method)]
    assert adapters.update_norms(module) == pytest.approx(dict.fromkeys(paths, 0), abs=1e-7)
    found = adapters.update_norms(moved(module))
    merged = adapters.merge(copy.deepcopy(module))
    # Weight plus update was rounded to float32, PiSSA's weight once more.
    rounding = 1e-5 if method == "pissa" else 1e-6
    wanted = {path: materialised(plain, merged, path) for path in paths}
    assert found == pytest.approx(wanted, rel=1e-4, abs=rounding) and min(wanted.values()) > 1e-3


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "pissa"])
def test_update_norms_know_own_ranks_and_an_adapted_head_and_stay_the_same_after_loading(method, tmp_path):
    outline = load_outline("ast-mini")
    paths, head = [target.path for target in adaptable("ast-mini", method)][:3], outline.head_layer.path
    settings = LoraConfig(
        method=method, targets=outline.targets(paths), r=4, alpha=3, head="lora",
        rank_pattern={paths[0]: 2, paths[2]: 7},
    )  # fmt: skip
    network = built("ast-mini")
    plain = copy.deepcopy(network.module)
    module = moved(adapters.attach(network, settings))
    found = adapters.update_norms(module)
    merged = adapters.merge(copy.deepcopy(module))
    assert found == pytest.approx({path: materialised(plain, merged, path) for path in [*paths, head]}, rel=1e-3)
    adapters.save(module, tmp_path / "adapter")
    network = dataclasses.replace(network, module=plain)
    assert adapters.update_norms(adapters.load(network, tmp_path / "adapter")) == pytest.approx(found, rel=1e-3)


def test_update_norms_of_a_weight_of_zeros_and_of_values_that_are_no_number():
    network = built("ast-mini")
    first, second, third = [target.path for target in adaptable("ast-mini", "lora")][:3]
    with torch.no_grad():
        network.module.get_submodule(first).weight.zero_()
    module = adapters.attach(network, LoraConfig(targets=load_outline("ast-mini").targets([first, second, third]), r=4))
    with torch.no_grad():
        module.get_submodule(f"base_model.model.{second}").lora_B["default"].weight.fill_(math.nan)
    found = adapters.update_norms(module)
    assert set(found) == {second, third} and math.isnan(found[second]) and found[third] == 0


@pytest.mark.parametrize("settings", [{"method": "bitfit"}, {"method": "full"}, {"head": "train"}])
def test_without_adapters_there_are_no_update_norms(settings):
    network = built("ast-mini")
    assert adapters.update_norms(adapters.attach(network, LoraConfig(**settings))) == {}


@pytest.mark.parametrize("method", ["bitfit", "full"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_comparisons_train_what_they_say_and_come_back_whole(variant, method, tmp_path):
    network = built(variant)
    plain = copy.deepcopy(network.module)
    module = adapters.attach(network, LoraConfig(method=method))
    counts = targets.count(load_outline(variant), [], r=8, head="train", num_classes=CLASSES, method=method)
    assert adapters.counts(module) == (counts.trainable, counts.total, 0)
    train(module, network, variant)
    wanted = logits(module, variant)
    adapters.save(module, tmp_path / "adapter")
    fresh = built(variant)
    torch.testing.assert_close(logits(adapters.load(fresh, tmp_path / "adapter"), variant), wanted)
    kept = adapters.trained_state(module)
    adapters.load_trained(plain, kept)
    torch.testing.assert_close(logits(plain, variant), wanted)


def test_loraplus_lets_b_learn_faster():
    network = built("ast-mini")
    module = adapters.attach(network, asked("ast-mini", "loraplus"))
    groups = adapters.parameter_groups(
        module, network.head_path, lr=1e-3, head_lr=2e-3, weight_decay=0, plus_ratio=16
    )  # fmt: skip
    names = {id(p): name for name, p in module.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if ".lora_A." in name} == {1e-3}
    assert {rate for name, rate in rates.items() if ".lora_B." in name} == {1.6e-2}
    assert {rate for name, rate in rates.items() if "classifier" in name} == {2e-3}


def test_rslora_scales_by_the_root_of_the_rank_and_lora_by_the_rank():
    for method, scaling in (("lora", 16 / 4), ("rslora", 16 / 2)):
        module = adapters.attach(built("ast-mini"), asked("ast-mini", method, alpha=16))
        assert {layer.scaling["default"] for layer in module.modules() if isinstance(layer, BaseTunerLayer)} == {
            scaling
        }


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.takes_ranks])
def test_a_module_can_have_a_rank_of_its_own(method, tmp_path):
    paths = [target.path for target in adaptable("ast-mini", method)][:3]
    outline = load_outline("ast-mini")
    ranks = {paths[0]: 2, paths[2]: 7}
    asked = LoraConfig(method=method, targets=outline.targets(paths), r=4, alpha=8, rank_pattern=ranks)
    network = built("ast-mini")
    module = adapters.attach(network, asked)
    counts = targets.count(outline, paths, r=4, head="train", num_classes=CLASSES, method=method, ranks=ranks)
    assert adapters.counts(module) == (counts.trainable, counts.total, counts.layers)
    layers = {
        p.removeprefix("base_model.model."): m for p, m in module.named_modules() if isinstance(m, BaseTunerLayer)
    }
    assert {path: layer.r["default"] for path, layer in layers.items()} == dict.fromkeys(paths, 4) | ranks
    if method != "rslora":
        assert {layer.scaling["default"] for layer in layers.values()} == {2.0}
    train(module, network, "ast-mini")
    wanted = logits(module, "ast-mini")
    adapters.save(module, tmp_path / "adapter")
    fresh = built("ast-mini")
    close = {"atol": 2e-3, "rtol": 1e-3} if method == "pissa" else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(logits(adapters.load(fresh, tmp_path / "adapter"), "ast-mini"), wanted, **close)


def test_adalora_gives_ranks_away():
    network = built("ast-mini")
    module = adapters.attach(network, asked("ast-mini", "adalora"), total_steps=8)
    train(module, network, "ast-mini", steps=8)
    kept = sum(int((p != 0).sum()) for name, p in module.named_parameters() if ".lora_E." in name)
    assert kept == 4 * len(adaptable("ast-mini", "adalora"))


@pytest.mark.parametrize(
    ("lora_fields", "field", "message"),
    [
        ({"method": "full", "targets": "some"}, "lora.targets", "leave lora.targets empty"),
        ({"method": "bitfit", "head": "lora"}, "lora.head", "BitFit has no adapter for the head"),
        ({"method": "pissa", "targets": "convolution"}, "lora.targets", "PiSSA adapts Linear only, not Conv2d"),
        (
            {"method": "ia3", "targets": "some", "rank_pattern": {"x": 2}},
            "lora.rank_pattern",
            "does not support separate ranks",
        ),
        ({"targets": "some", "rank_pattern": {"x": 2}}, "lora.rank_pattern", "x is not a target of this run"),
        ({"targets": "some", "rank_pattern": {"first": 999}}, "lora.rank_pattern", "must be from 1 to 192"),
        ({"method": "lorra"}, "lora.method", "must be 'lora', 'rslora'"),
    ],
)
def test_what_a_method_cannot_do_is_refused_by_its_field(lora_fields, field, message):
    outline = load_outline("ast-mini")
    paths = {
        "some": [n.path for n in outline.nodes if n.name == "q_proj"],
        "convolution": [n.path for n in outline.nodes if n.kind == "Conv2d"],
    }
    if kind := lora_fields.get("targets"):
        lora_fields = {**lora_fields, "targets": [t.model_dump() for t in outline.targets(paths[kind])]}
    if "first" in lora_fields.get("rank_pattern", {}):
        lora_fields["rank_pattern"] = {paths["some"][0]: 999}
    with pytest.raises(ConfigError, match=message) as error:
        config.build({"lora": lora_fields})
    assert error.value.field == field
