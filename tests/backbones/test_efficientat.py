import copy
import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from parity.oracle import Oracle
from safetensors.torch import load_file, save_file
from torch import nn

from sousa_engine import frontends
from sousa_engine.backbones import efficientat, key_tree
from sousa_engine.core.errors import DataError, WeightsError

VARIANTS = {variant.name: variant for variant in efficientat.variants() if not variant.embedded}
MELS = 32
SMALL = {  # small networks of every kind
    "mlp": {"width": 0.2, "head_width": 24},
    "fc": {"width": 0.2, "head": "fc"},
    "dynamic": {"width": 0.2, "head_width": 24, "dynamic": "all"},
    "replace_se": {"width": 0.2, "head_width": 24, "dynamic": "replace_se"},
}


class Recorded(Oracle):
    """An oracle whose constants are in keys.json, and whose trunk may be another oracle's."""

    def __init__(self, name: str):
        super().__init__(name)
        if "others" in self.keys:
            trunk = Oracle("efficientat_mn10_as").keys["tensors"]
            self.keys["tensors"] |= {key: facts for key, facts in trunk.items() if key.startswith("features.")}

    def tensor(self, name: str, salt: str = "") -> np.ndarray:
        shape, a, *_ = facts = self.keys["tensors"][name]
        if a is not None:
            return super().tensor(name, salt)
        return np.array(facts[5], np.float32) if len(facts) > 5 else np.zeros(shape, np.int64)


def small(kind, num_classes=5, seed=0, **more):
    """A small network with settings of its own, freshly initialised, in eval mode."""
    variant = VARIANTS["mn10_as"]
    front_end = dataclasses.replace(variant.front_end, mel_bins=MELS)
    variant = dataclasses.replace(variant, architecture=SMALL[kind] | more, front_end=front_end)
    return efficientat.networks().network(variant, num_classes, seed).eval()


@torch.no_grad()
def settled(kind, **more):
    """A small network whose BatchNorms have seen some data: as long as they have not, its logits are all but zero."""
    network = small(kind, **more).train()
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network(features=features(16, seed=9))
    assert all(norm.num_batches_tracked == 1 for norm in norms)
    return network.eval()


def features(clips=2, frames=50, seed=1):
    return torch.randn(clips, frames, MELS, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["mn10_as", "mn10_as_fc", "dymn10_as"])
def published(request):
    """(oracle, the network with everything from a file like the authors')."""
    oracle = Recorded(f"efficientat_{request.param}")
    network = efficientat.networks().network(VARIANTS[request.param], 527, 0)
    file = {key: torch.from_numpy(value) for key, value in oracle.state().items()}
    key_tree.load_official(network, file, efficientat)
    return oracle, network.eval()


def stages(network):
    """Stage name -> module, as the authors number them: the stem, 15 blocks, the last convolution."""
    if hasattr(network, "features"):
        parts = list(network.features)
    else:
        parts = [network.in_c, *network.layers, network.out_c]
    return {f"fmap{i}": part for i, part in enumerate(parts)}


@torch.no_grad()
@pytest.mark.parametrize("clip", ["A", "B"])
def test_every_stage_from_the_waveform_on_equals_the_authors_network(published, clip):
    oracle, network = published
    waveforms = torch.from_numpy(oracle.clip(clip))[None]
    seen = {"logmel": frontends.normalise(frontends.log_mel(waveforms, network.front_end), network.front_end)[0].T}
    hooks = [
        part.register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))
        for name, part in stages(network).items()
    ]
    seen["logits"] = network(waveforms)
    for hook in hooks:
        hook.remove()
    seen["embedding"] = seen["fmap16"].mean((2, 3))
    recorded = {name.split("/")[1] for name in oracle.info["outputs"]}
    assert recorded <= set(seen) and len(recorded) in (1, 19, 20)
    for stage in recorded:
        name = f"{clip}/{stage}"
        assert oracle.difference(name, seen[stage]) <= oracle.tolerance(name), name


@torch.no_grad()
@pytest.mark.parametrize("published", ["dymn10_as"], indirect=True)
def test_in_float64_only_the_rounding_of_the_record_is_left(published):
    """The authors' logits in float32 are as far from ours in float64 as from their own in float64."""
    oracle, network = published
    exact = copy.deepcopy(network).double()
    waveforms = torch.from_numpy(oracle.clip("A"))[None]
    logits = exact.classify(
        frontends.normalise(frontends.log_mel(waveforms.double(), network.front_end), network.front_end)
    )
    assert logits.dtype == torch.float64
    assert oracle.difference("A/logits", logits) <= oracle.info["fp32_vs_fp64_max_abs_logits"]
    assert (network(waveforms) - logits).abs().max() <= oracle.tolerance("A/logits")


@torch.no_grad()
def test_one_wrong_tensor_would_be_noticed(published):
    """Shown on the tensor that changes the logits least of all."""
    oracle, network = published
    key = min(oracle.info["min_single_tensor_sensitivity"].items(), key=lambda item: item[1])[0]
    try:
        network.load_state_dict({key: torch.from_numpy(oracle.tensor(key, salt="#"))}, strict=False)
        found = max(
            oracle.difference(f"{clip}/logits", network(torch.from_numpy(oracle.clip(clip))[None])) for clip in "AB"
        )
        assert found > 100 * oracle.tolerance("A/logits")
    finally:
        network.load_state_dict({key: torch.from_numpy(oracle.tensor(key))}, strict=False)


DIGESTS = json.loads((Oracle("efficientat_mn10_as").folder / "digests.json").read_text())


@pytest.mark.parametrize("size", DIGESTS)
def test_every_size_has_the_authors_tensors(size):
    facts = DIGESTS[size]
    variant = dataclasses.replace(VARIANTS["mn10_as"], architecture=facts["architecture"])
    with torch.device("meta"):
        network = efficientat.networks().network(variant, 527, 0)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()} | efficientat.LEFTOVERS
    lines = (f"{key} {','.join(map(str, shape))}" for key, shape in sorted(shapes.items()))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == facts["digest"]
    assert sum(parameter.numel() for parameter in network.parameters()) == facts["n_params"]
    for same in (v for v in VARIANTS.values() if size == v.name.removesuffix("_ext")):
        assert {**same.architecture, "temperature": 1.0} == {**facts["architecture"], "temperature": 1.0}


def test_a_file_of_another_width_is_refused_and_nothing_is_loaded():
    network, other = small("mlp"), small("mlp", width=0.3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match="have another shape"):
        key_tree.load_official(network, other.state_dict(), efficientat)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("frames", [16, 17, 999, 6000])
def test_short_and_long_clips_are_heard_from_end_to_end(kind, frames):
    network = settled(kind)
    clip = features(1, frames).requires_grad_()
    logits = network(features=clip)
    assert logits.shape == (1, 5) and logits.isfinite().all()
    logits.square().sum().backward()
    assert clip.grad is not None and (clip.grad[0].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("frames", [15, 6001])
def test_clips_beyond_the_limits_are_refused(frames):
    with pytest.raises(DataError, match="this backbone accepts"):
        small("mlp")(features=features(1, frames))


@torch.no_grad()
@pytest.mark.parametrize("kind", SMALL)
def test_a_clip_is_heard_alike_alone_and_in_a_batch(kind):
    network, clips = settled(kind), features(3)
    alone = torch.cat([network(features=clip[None]) for clip in clips])
    torch.testing.assert_close(network(features=clips), alone, atol=1e-6, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mlp", "fc", "dynamic"])
def test_strides_of_time_alone_leave_more_steps(kind):
    network = small(kind, stem_stride=(2, 1), strides=((2, 1), 2, [1, 2], 1))
    steps, whole = network.embed(features(frames=48))
    assert steps.shape == (2, 12, 192)
    assert whole.shape == (2, 192 if kind == "fc" else 24)
    assert small(kind).embed(features(frames=48))[0].shape == (2, 2, 192)
    assert {key: value.shape for key, value in network.state_dict().items()} == {
        key: value.shape for key, value in small(kind).state_dict().items()
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", SMALL)
def test_with_batch_norm_at_rest_only_the_heads_dropout_is_random(kind):
    network, clips = settled(kind), features()
    expected = network(features=clips)
    network.train()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    drawn = [network(features=clips) for _ in range(2)]
    assert torch.equal(*drawn) == (kind == "fc")
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    torch.testing.assert_close(network(features=clips), expected)


@pytest.mark.parametrize("kind", SMALL)
def test_a_copy_and_a_saved_file_give_the_same_network(kind, tmp_path):
    network, clips = settled(kind), features()
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    loaded = small(kind, seed=1)
    key_tree.load_official(loaded, load_file(tmp_path / "mine.safetensors"), efficientat)
    with torch.no_grad():
        expected = network(features=clips)
        assert torch.equal(copy.deepcopy(network)(features=clips), expected)
        assert torch.equal(loaded(features=clips), expected)


@pytest.mark.parametrize("kind", SMALL)
def test_the_same_seed_gives_the_same_network_and_leaves_other_randomness_alone(kind):
    torch.manual_seed(3)
    untouched = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = small(kind), small(kind), small(kind, seed=1)
    assert torch.equal(torch.rand(1), untouched)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    weights = [key for key, value in one.state_dict().items() if key.endswith("weight") and value.ndim > 1]
    assert not any(torch.equal(one.state_dict()[key], other.state_dict()[key]) for key in weights)
    assert one(features=features()).std() > 0


@pytest.mark.parametrize("kind", SMALL)
def test_only_the_head_depends_on_the_classes(kind):
    shapes = [{key: value.shape for key, value in small(kind, n).state_dict().items()} for n in (5, 7)]
    head = "classifier." if kind == "fc" else "classifier.5."
    assert {key for key in shapes[0] if shapes[0][key] != shapes[1][key]} == {
        key for key, shape in shapes[0].items() if key.startswith(head) and shape
    }


@torch.no_grad()
def test_half_precision_by_autocast_is_close(published):
    oracle, network = published
    waveforms = torch.from_numpy(oracle.clip("B"))[None]
    with torch.autocast("cpu", torch.bfloat16):
        half = network(waveforms).float()
    assert oracle.difference("B/logits", half) < 0.04 * half.abs().max()


def adaptable(network):
    """Paths of what LoRA can adapt and merge back."""
    return [
        path
        for path, part in network.named_modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    ]


@pytest.mark.parametrize("kind", SMALL)
def test_every_adaptable_module_gets_a_gradient_and_merges_back(kind):
    from peft import LoraConfig, get_peft_model

    network, clips = settled(kind), features(4)
    paths = adaptable(network)
    expected = network(features=clips).detach()
    adapted = get_peft_model(network, LoraConfig(r=2, target_modules=paths)).eval()
    torch.testing.assert_close(adapted(features=clips), expected)
    adapted(features=clips).square().sum().backward()
    matrices = {name: p for name, p in adapted.named_parameters() if "lora_B" in name}
    assert len(matrices) == len(paths)
    silent = [name for name, p in matrices.items() if p.grad is None or not p.grad.any()]
    assert not silent
    with torch.no_grad():
        for matrix in matrices.values():
            matrix.add_(0.01)
        changed = adapted(features=clips)
        assert not torch.allclose(changed, expected)
        torch.testing.assert_close(adapted.merge_and_unload()(features=clips), changed, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("roles, layers, parameters", [({"se"}, 16, 162_560), ({"se", "pointwise"}, 46, 376_832)])
def test_lora_costs_what_it_should(roles, layers, parameters):
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        network = efficientat.networks().network(VARIANTS["mn10_as"], 527, 0)
        paths = [path for path in adaptable(network) if efficientat.role(path)[0] in roles]
        adapted = get_peft_model(network, LoraConfig(r=16, target_modules=paths))
    assert len(paths) == layers
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize("kind", SMALL)
def test_roles_say_what_the_modules_are(kind):
    network = small(kind)
    roles = {path: efficientat.role(path) for path, _ in network.named_modules()}
    for path, part in network.named_modules():
        found = roles[path][0]
        if path.startswith("classifier"):
            assert found == ("mlp.in" if path == "classifier.2" else "head") or not any(True for _ in part.parameters())
        elif isinstance(part, nn.BatchNorm2d):
            assert found == "norm", path
        elif isinstance(part, nn.Linear):
            assert found == ("se" if ".conc_se_layers." in path else "gate"), path
        elif isinstance(part, nn.Conv2d):
            kernel = part.kernel_size[0]
            assert found == ("depthwise" if part.groups > 1 else "pointwise" if kernel == 1 else "conv"), path
        elif type(part).__name__ == "DynamicConv":
            assert found == ("depthwise" if part.groups > 1 else "pointwise"), path
        else:
            assert found == "", path
    assert {layer for _, layer in roles.values()} == {None, *range(15)}
    assert all(layer is None for path, (_, layer) in roles.items() if path.split(".")[0] not in ("features", "layers"))
    assert roles.get("features.0.0", ("conv", None)) == ("conv", None)
    assert roles.get("features.16.0", ("pointwise", None)) == ("pointwise", None)


def test_every_variant_says_where_its_file_is():
    assert [name for name, variant in VARIANTS.items() if "efficientat" in variant.aliases] == ["mn10_as"]
    for name, variant in VARIANTS.items():
        assert variant.download.file.startswith(f"{name}") and variant.download.file.endswith(".pt")
        assert variant.download.url.endswith(f"/v0.0.1/{variant.download.file}") and " " not in variant.download.url
