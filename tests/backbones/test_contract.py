"""What every backbone promises, published or embedded, in its real size: one test a promise, one network a variant."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from sousa_engine import backbones, frontends, targets
from sousa_engine.backbones.outline_maker import outline as made_outline
from sousa_engine.backbones.outline_maker import text as outline_text
from sousa_engine.core.config import LoraConfig
from sousa_engine.core.errors import DataError
from sousa_engine.targets import OUTLINES
from sousa_engine.training import adapters
from sousa_engine.training.statistics import measure_statistics

CLASSES = 5
FRAMES = 64


class Trained:
    """A variant with LoRA on everything it can adapt, before and after a step."""

    def __init__(self, name, folder):
        self.name, self.variant = name, backbones.variant(name)
        self.spec, self.outline = self.variant.front_end, targets.load_outline(name)
        waveforms = 0.1 * torch.randn(1, self.spec.samples(FRAMES), generator=torch.Generator().manual_seed(1))
        self.features = frontends.log_mel(waveforms, self.spec)
        self.network = backbones.open_network(name, num_classes=CLASSES, weights="random", workspace=None)
        measure_statistics(self.network.module, self.features.numpy(), np.arange(1), batch_size=1)
        self.plain = copy.deepcopy(self.network.module)
        self.before = self.logits(self.plain)
        nodes = [n for n in self.outline.nodes if n.adaptable and not self.outline.in_head(n.path)]
        self.targets = self.outline.targets(node.path for node in nodes)
        self.module = adapters.attach(self.network, LoraConfig(targets=self.targets, r=2))
        self.at_start = self.logits(self.module)
        self.statistics = {
            path: (norm.running_mean.clone(), norm.running_var.clone())
            for path, norm in self.plain.named_modules()
            if isinstance(norm, _BatchNorm) and not self.outline.in_head(path)
        }
        # A small step: a large random network, dynamic ones above all, leaps away under a larger one.
        groups = adapters.parameter_groups(self.module, self.network.head_path, lr=2e-5, head_lr=2e-5, weight_decay=0)
        optimiser = torch.optim.AdamW(groups)
        self.module.train()
        cross_entropy(self.module(features=self.features), torch.arange(1)).backward()
        self.first_gradients = {name: p.grad for name, p in self.module.named_parameters()}
        optimiser.step()
        self.after = self.logits(self.module)
        self.folder = folder / "adapter"
        adapters.save(self.module, self.folder)

    def logits(self, module):
        with torch.no_grad():
            return module.eval()(features=self.features)

    def like_plain(self):
        """A network of the plain one's own parameters."""
        return copy.deepcopy(self.plain, {id(p): p for p in self.plain.parameters()})


ALIKE = {"beats-iter3": "beats-iter3-plus"}  # one network, two files of weights


@pytest.fixture(scope="module", params=[name for name in backbones.VARIANTS if name not in ALIKE])
def trained(request, tmp_path_factory):
    return Trained(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("name", backbones.VARIANTS)
def test_the_committed_outline_is_the_real_network(name):
    """After an intended change: python -m sousa_engine.backbones.outline_maker"""
    assert (OUTLINES / f"{name}.json").read_text() == outline_text(made_outline(backbones.variant(name)))


@pytest.mark.parametrize(("name", "like"), ALIKE.items())
def test_two_variants_of_one_network_need_one_of_them_tried(name, like):
    one, other = backbones.variant(name), backbones.variant(like)
    same = ("family", "architecture", "front_end", "head_path", "embedded")
    assert all(getattr(one, what) == getattr(other, what) for what in same)


def test_the_adapter_changes_nothing_before_the_first_step(trained):
    assert trained.before.abs().max() > 1e-4  # a network that has faded to nothing would pass anything
    torch.testing.assert_close(trained.at_start, trained.before, atol=1e-5, rtol=1e-5)


def test_every_ticked_module_gets_a_gradient_on_the_first_step(trained):
    missing = []
    for target in trained.targets:
        stem = f"base_model.model.{target.path}."
        # PEFT starts an embedding's A at zero instead of its B, so that is where the first gradient arrives.
        key = "lora_embedding_A.default" if target.kind == "Embedding" else "lora_B.default.weight"
        gradient = trained.first_gradients[stem + key]
        if gradient is None or not gradient.abs().max() > 0:
            missing.append(target.path)
    assert not missing


def test_the_head_trains_and_nothing_else_of_the_plain_network(trained):
    head = trained.network.head_path
    for name, gradient in trained.first_gradients.items():
        own = name.removeprefix("base_model.model.")
        if gradient is None:
            assert "lora_" not in own and "modules_to_save" not in own, name
        else:
            assert "lora_" in own or own.startswith(f"{head}.modules_to_save."), name
    trained_names = [name for name, gradient in trained.first_gradients.items() if gradient is not None]
    assert any(name.startswith(f"base_model.model.{head}.modules_to_save.") for name in trained_names)


def test_statistics_of_a_frozen_backbone_do_not_drift(trained):
    modules = dict(trained.module.get_base_model().named_modules())
    for path, (mean, variance) in trained.statistics.items():
        assert torch.equal(modules[path].running_mean, mean) and torch.equal(modules[path].running_var, variance), path
    if trained.variant.family in ("efficientat", "htsat"):
        assert trained.statistics


def test_merged_weights_equal_the_adapter(trained):
    merged = adapters.merge(copy.deepcopy(trained.module))
    assert not any("lora" in name for name, _ in merged.named_modules())
    scale = max(1.0, trained.after.abs().max().item())
    assert (trained.logits(merged) - trained.after).abs().max() <= 1e-5 * scale


def test_the_saved_adapter_gives_identical_logits_and_opens_with_plain_peft(trained):
    from peft import PeftModel

    assert not torch.equal(trained.after, trained.before)
    opened = PeftModel.from_pretrained(trained.like_plain(), str(trained.folder))
    assert torch.equal(trained.logits(opened), trained.after)
    network = replace(trained.network, module=trained.like_plain())
    assert torch.equal(trained.logits(adapters.load(network, trained.folder)), trained.after)


def test_counts_are_those_of_the_real_network(trained):
    paths = [target.path for target in trained.targets]
    counts = targets.count(trained.outline, paths, r=2, head="train", num_classes=CLASSES)
    assert adapters.counts(trained.module) == (counts.trainable, counts.total, counts.layers)
    total = sum(parameter.numel() for parameter in trained.plain.parameters())
    assert counts.total == total
    biases = sum(p.numel() for name, p in trained.plain.named_parameters() if name.rpartition(".")[2] == "bias")
    head = dict(trained.plain.named_parameters())
    head_biases = sum(
        p.numel() for name, p in head.items()
        if name.startswith(trained.network.head_path + ".") and name.rpartition(".")[2] == "bias"
    )  # fmt: skip
    found = targets.count(trained.outline, [], r=2, head="freeze", num_classes=CLASSES, method="bitfit")
    assert found.trainable == biases - head_biases


def test_every_recommended_set_is_made_of_targets(trained):
    sets = targets.recommended_sets(trained.outline)
    assert targets.default_set(trained.outline) in sets
    known = {target.path for target in trained.targets}
    assert all(paths and set(paths) <= known for paths in sets.values())


def test_waveforms_give_the_same_as_their_features(trained):
    waveforms = 0.1 * torch.randn(2, trained.spec.samples(FRAMES), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = trained.plain.eval()(waveforms)
        wanted = trained.plain(features=frontends.log_mel(waveforms, trained.spec))
    assert found.shape == (2, CLASSES) and torch.equal(found, wanted)
    for wrong in (None, waveforms[0]):
        with pytest.raises(DataError, match=r"Expected waveforms as \(batch, samples\)"):
            trained.plain(wrong)


def test_the_shortest_clip_works_and_a_shorter_one_is_refused(trained):
    spec = trained.spec
    with torch.no_grad():
        assert trained.plain.eval()(torch.randn(1, spec.samples(spec.min_frames))).isfinite().all()
    with pytest.raises(DataError, match="too short"):
        trained.plain(torch.randn(1, spec.samples(spec.min_frames) - 1))
