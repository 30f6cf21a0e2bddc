import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from sousa_engine import backbones, targets
from sousa_engine.backbones import Network, ast
from sousa_engine.core.config import LoraConfig, TargetModule
from sousa_engine.core.errors import TargetError, WeightsError
from sousa_engine.frontends import normalise
from sousa_engine.training import adapters

CLASSES = 6
VARIANTS = ["ast-mini"]  # every other backbone: tests/backbones/test_contract.py
QUERY = "audio_spectrogram_transformer.layers.0.attention.q_proj"
SQUARE = targets.load_outline("ast-mini").node(QUERY).shape


def built(workspace, name="ast-mini", seed=0):
    return backbones.open_network(name, num_classes=CLASSES, weights="random", workspace=workspace, seed=seed)


def asked(entries, name="ast-mini", **settings):
    outline = targets.load_outline(name)
    paths = [path for path in targets.resolve_strict(outline, entries).paths if not outline.in_head(path)]
    return LoraConfig(targets=outline.targets(paths), **settings)


def everything(name="ast-mini", **settings):
    """Every module of the tree that can be ticked."""
    outline = targets.load_outline(name)
    return asked([node.path for node in outline.nodes if node.adaptable], name, **settings)


def batch(name="ast-mini", clips=3):
    spec = backbones.variant(name).front_end
    generator = torch.Generator().manual_seed(1)
    return spec.mean + spec.std * torch.randn(clips, 120, spec.mel_bins, generator=generator)


def run(module, name="ast-mini", clips=3):
    return module(features=batch(name, clips))


def trained(module, steps=3):
    """A few steps, so that B is no longer zero."""
    groups = adapters.parameter_groups(module, "classifier", lr=1e-2, head_lr=1e-2, weight_decay=0.01)
    optimiser = torch.optim.AdamW(groups)
    module.train()
    for _ in range(steps):
        cross_entropy(run(module), torch.arange(3)).backward()
        optimiser.step()
        optimiser.zero_grad()
    return module.eval()


@pytest.mark.parametrize("head", ["train", "lora"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_ticked_module_receives_gradient_on_the_first_step(workspace, name, head):
    config = everything(name, head=head)
    module = adapters.attach(built(workspace, name), config).train()
    cross_entropy(run(module, name), torch.arange(3)).backward()
    grads = {key: p.grad for key, p in module.named_parameters() if "lora_B" in key}
    assert len(grads) == len(config.targets) + (head == "lora")
    for target in config.targets:
        grad = grads[f"base_model.model.{target.path}.lora_B.default.weight"]
        assert grad is not None and grad.abs().max() > 0, target.path


@pytest.mark.parametrize("head", ["train", "lora", "freeze"])
@pytest.mark.parametrize("name", VARIANTS)
def test_attaching_changes_nothing_before_the_first_step(workspace, name, head):
    network = built(workspace, name)
    with torch.no_grad():
        before = run(network.module.eval(), name)
        after = run(adapters.attach(network, everything(name, head=head)).eval(), name)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("head", "trains"),
    [
        ("train", {"classifier.layernorm", "classifier.dense"}),
        ("lora", {"classifier.dense.lora_A", "classifier.dense.lora_B"}),
        ("freeze", set()),
    ],
)
def test_the_head_trains_as_its_policy_says(workspace, head, trains):
    module = adapters.attach(built(workspace), asked(["q_proj"], head=head))
    names = {key for key, p in module.named_parameters() if p.requires_grad and "classifier" in key}
    plain = {k.replace("base_model.model.", "").replace(".modules_to_save.default", "") for k in names}
    assert {k.replace(".default", "").rpartition(".")[0] for k in plain} == trains


@pytest.mark.parametrize("head", ["train", "lora", "freeze"])
@pytest.mark.parametrize("r", [1, 8])
@pytest.mark.parametrize("entries", [["q_proj"], ["all-linear"], ["projection", "3.mlp.fc1"]])
def test_counts_of_the_network_are_those_the_tree_foretold(workspace, entries, r, head):
    config = asked(entries, r=r, head=head)
    outline = targets.load_outline("ast-mini")
    foretold = targets.count(outline, [t.path for t in config.targets], r=r, head=head, num_classes=CLASSES)
    found = adapters.counts(adapters.attach(built(workspace), config))
    assert found == (foretold.trainable, foretold.total, foretold.layers)


@pytest.mark.parametrize(
    ("entries", "r", "head", "layers", "trainable"),
    [
        (["all-linear"], 8, "lora", 73, 1_333_568),
        (["all-linear"], 8, "train", 72, 1_359_400),
        (["q_proj", "k_proj", "v_proj", "o_proj", "fc2"], 16, "freeze", 60, 1_916_928),
        (["query", "key", "value", "output.dense"], 16, "freeze", 60, 1_916_928),
        (["q_proj", "k_proj", "v_proj", "o_proj"], 16, "freeze", 48, 1_179_648),
    ],
)
def test_ast_base_has_the_known_numbers_of_trainable_parameters(entries, r, head, layers, trainable):
    variant = backbones.variant("ast-base")
    with torch.device("meta"):
        network = Network(
            module=ast.networks().network(variant, 40, 0),
            variant=variant,
            spec=variant.front_end,
            weights_label="none",
            head_path="classifier",
            num_classes=40,
        )
        module = adapters.attach(network, asked(entries, "ast-base", r=r, head=head))
    assert adapters.counts(module) == (trainable, 86_219_560, layers)


def test_without_targets_only_the_head_trains(workspace):
    module = adapters.attach(built(workspace), LoraConfig())
    assert {key for key, p in module.named_parameters() if p.requires_grad} == {
        f"classifier.{name}" for name in ("layernorm.weight", "layernorm.bias", "dense.weight", "dense.bias")
    }
    outline = targets.load_outline("ast-mini")
    foretold = targets.count(outline, (), r=8, head="train", num_classes=CLASSES)
    assert adapters.counts(module) == (foretold.trainable, foretold.total, 0)


def test_nothing_to_train_is_refused(workspace):
    with pytest.raises(TargetError, match="Nothing would train"):
        adapters.attach(built(workspace), LoraConfig(head="freeze"))


def test_a_ticked_head_is_left_to_its_policy(workspace):
    outline = targets.load_outline("ast-mini")
    ticked = outline.targets([QUERY, "classifier.dense"])
    for head, layers in (("train", 1), ("lora", 2), ("freeze", 1)):
        assert (
            adapters.counts(adapters.attach(built(workspace), LoraConfig(targets=ticked, r=4, head=head)))[2] == layers
        )


@pytest.mark.parametrize(
    ("path", "kind", "shape", "says"),
    [
        (QUERY.replace("q_proj", "query"), "Linear", SQUARE, "Nearest: .*q_proj"),
        (QUERY, "Conv2d", SQUARE, "is Linear"),
        (QUERY, "Linear", (99, 99), "is Linear .* expects Linear"),
        (QUERY.rpartition(".")[0], "Linear", SQUARE, "is ASTAttention"),
    ],
)
def test_a_target_that_is_no_longer_what_it_was_is_refused(workspace, path, kind, shape, says):
    config = LoraConfig(targets=(TargetModule(path=path, kind=kind, shape=shape),))
    with pytest.raises(TargetError, match=says):
        adapters.attach(built(workspace), config)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("head", ["train", "lora"])
def test_the_merged_network_equals_the_adapted_one(workspace, name, head):
    module = trained(adapters.attach(built(workspace, name), everything(name, head=head)))
    with torch.no_grad():
        adapted = run(module, name)
        merged = adapters.merge(module)
        torch.testing.assert_close(run(merged, name), adapted, atol=1e-5, rtol=0)
    assert not any("lora" in key for key in merged.state_dict())
    assert [path for path, _ in merged.named_modules()] == [path for path, _ in built(workspace).module.named_modules()]


@pytest.mark.parametrize(
    "config", [everything(), everything(head="lora"), asked(["q_proj"], head="freeze"), LoraConfig()]
)
def test_a_saved_adapter_gives_identical_logits_after_loading(workspace, tmp_path, config):
    module = trained(adapters.attach(built(workspace), config))
    adapters.save(module, tmp_path / "adapter")
    loaded = adapters.load(built(workspace), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(run(loaded), run(module))
        assert not torch.equal(run(loaded), run(built(workspace).module.eval()))
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("head", ["train", "lora"])
def test_a_saved_adapter_opens_with_plain_peft_on_the_plain_model(workspace, tmp_path, head):
    from peft import PeftModel
    from transformers import ASTConfig, ASTForAudioClassification

    variant = backbones.variant("ast-mini")
    network = built(workspace)
    plain = ASTForAudioClassification(ASTConfig(**variant.architecture, num_labels=CLASSES))
    plain.load_state_dict(copy.deepcopy(network.module.state_dict()))
    module = trained(adapters.attach(network, everything(head=head)))
    adapters.save(module, tmp_path / "adapter")
    opened = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    # Plain transformers takes this length only, and normalised features.
    features = torch.randn(2, variant.architecture["max_length"], variant.front_end.mel_bins)
    with torch.no_grad():
        found = opened(input_values=normalise(features, variant.front_end)).logits
        torch.testing.assert_close(found, module(features=features), atol=1e-6, rtol=0)


def test_saving_again_replaces_the_folder_whole(workspace, tmp_path):
    adapters.save(adapters.attach(built(workspace), LoraConfig()), tmp_path / "adapter")
    adapters.save(adapters.attach(built(workspace), asked(["q_proj"])), tmp_path / "adapter")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
    names = sorted(p.name for p in (tmp_path / "adapter").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("config", [asked(["q_proj"]), LoraConfig()])
def test_an_adapter_of_another_network_is_refused(workspace, tmp_path, config):
    adapters.save(adapters.attach(built(workspace), config), tmp_path / "adapter")
    other = backbones.open_network("ast-mini", num_classes=CLASSES + 1, weights="random", workspace=workspace)
    with pytest.raises(WeightsError, match="does not fit"):
        adapters.load(other, tmp_path / "adapter")


def test_an_adapter_with_a_tensor_missing_is_refused(workspace, tmp_path):
    from safetensors.torch import load_file, save_file

    adapters.save(adapters.attach(built(workspace), asked(["q_proj"])), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    del state[next(key for key in state if "lora_B" in key)]
    save_file(state, file)
    with pytest.raises(WeightsError, match="1 tensors differ"):
        adapters.load(built(workspace), tmp_path / "adapter")


def test_a_folder_without_an_adapter_is_refused_without_asking_the_hub(workspace, tmp_path):
    with pytest.raises(WeightsError, match="holds no adapter"):
        adapters.load(built(workspace), tmp_path)


@pytest.mark.parametrize("config", [everything(), everything(head="lora"), LoraConfig()])
def test_optimiser_groups_hold_every_trainable_parameter_once(workspace, config):
    module = adapters.attach(built(workspace), config)
    groups = adapters.parameter_groups(module, "classifier", lr=1e-3, head_lr=5e-3, weight_decay=0.1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    names = {id(p): key for key, p in module.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (5e-3 if "classifier" in names[id(parameter)] else 1e-3)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_an_adapted_network_can_be_deep_copied(workspace):
    module = adapters.attach(built(workspace), everything()).eval()
    with torch.no_grad():
        assert torch.equal(run(copy.deepcopy(module)), run(module))


def test_dropout_stands_in_front_of_every_adapter(workspace):
    module = adapters.attach(built(workspace), asked(["q_proj"], dropout=0.25))
    assert [m.p for path, m in module.named_modules() if path.endswith("lora_dropout.default")] == [0.25] * 4
