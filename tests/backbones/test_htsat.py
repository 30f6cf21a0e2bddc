import copy
import dataclasses
import hashlib
import itertools
import json
import zlib

import numpy as np
import pytest
import torch
from parity.oracle import Oracle
from safetensors.torch import load_file, save_file

from sousa_engine import frontends
from sousa_engine.backbones import htsat, key_tree
from sousa_engine.core.errors import DataError, WeightsError

STAGES = ["image", "patch_embed", "stage0_block0", "stage0_block1_shifted", "stage0", "stage1", "stage2", "stage3"]
AUDIOSET = htsat.variants()[0]
SMALL = {
    "num_mel_bins": 32,
    "spec_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": (2, 2, 2),
    "num_heads": (1, 2, 4),
    "window_size": 4,
}


class HTSATOracle(Oracle):
    """Rows marked "keep" are tables the authors' code derives, and a counter: zeros here, of the recorded shape."""

    def state(self):
        return {name: self.tensor(name) for name in self.keys["tensors"]}

    def tensor(self, name, salt=""):
        shape, *numbers, checksum = self.keys["tensors"][name][:4]
        if numbers == [None, None]:
            return np.zeros(shape, np.int64 if name.endswith(("index", "tracked")) else np.float32)
        made = super().tensor(name, salt)
        assert salt or zlib.crc32(made.tobytes()) == checksum, name
        return made


@pytest.fixture(scope="module")
def oracle():
    return HTSATOracle("htsat_audioset")


def wrapped(oracle):
    """As Lightning wrote the authors' file."""
    tensors = {f"sed_model.{key}": torch.from_numpy(value) for key, value in oracle.state().items()}
    return {"epoch": 1, "global_step": 1, "state_dict": tensors, "optimizer_states": []}


@pytest.fixture(scope="module")
def published(oracle):
    """HTS-AT with 527 classes and everything of a file like the authors'."""
    network = htsat.networks().network(AUDIOSET, 527, 0)
    key_tree.load_official(network, wrapped(oracle), htsat)
    return network.eval()


def small_variant(**changes):
    settings = {**SMALL, **changes}
    return dataclasses.replace(
        AUDIOSET, name="small", architecture=settings, front_end=htsat.front_end(settings["num_mel_bins"])
    )


@pytest.fixture
def small():
    """Hears 128 frames of 32 mel bins at once; its bn0 has seen something; not in training mode."""
    network = htsat.networks().network(small_variant(), 5, 0)
    network.bn0.running_mean += torch.linspace(-50, -30, 32)
    network.bn0.running_var *= 300
    return network.eval()


def decibels(*shape):
    return 15 * torch.randn(*shape, generator=torch.Generator().manual_seed(1)) - 40


def listening(network, seen):
    """Hooks that put what every stage gives into `seen`."""
    places = {"patch_embed": network.patch_embed, "norm": network.norm}
    places |= {"stage0_block0": network.layers[0].blocks[0], "stage0_block1_shifted": network.layers[0].blocks[1]}
    places |= {f"stage{i}": stage for i, stage in enumerate(network.layers)}
    hooks = [m.register_forward_hook(lambda *a, name=n: seen.update({name: a[2]})) for n, m in places.items()]
    hooks.append(network.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.update(image=inputs[0])))
    return hooks


@pytest.mark.parametrize("clip", ["A", "B", "C"])
@torch.no_grad()
def test_every_stage_of_htsat_equals_the_authors_network(published, oracle, clip):
    """A and B last 10 s; C lasts 4 s, is heard twice and stretched."""
    waveform = torch.from_numpy(oracle.clip(clip))[None]
    seen = {"logmel_db": frontends.log_mel(waveform, AUDIOSET.front_end)}
    hooks = listening(published, seen)
    seen["clipwise_logits"] = published(waveform)
    for hook in hooks:
        hook.remove()
    _, seen["latent_output"] = published.embed(seen["logmel_db"])
    seen["framewise_every32"] = published.framewise(seen["logmel_db"]).sigmoid()
    assert set(seen) == {name.split("/")[1] for name in oracle.info["outputs"]}
    for stage, found in seen.items():
        name = f"{clip}/{stage}"
        assert oracle.difference(name, found) <= oracle.tolerance(name), name


@torch.no_grad()
def test_one_wrong_tensor_would_be_noticed(published, oracle):
    """Shown on the tensor that changes the logits least of all, but for the head that the network never calls."""
    felt = {key: change for key, change in oracle.info["min_single_tensor_sensitivity"].items() if change > 0}
    key = min(felt, key=felt.__getitem__)
    network = copy.deepcopy(published)
    network.load_state_dict({key: torch.from_numpy(oracle.tensor(key, salt="#"))}, strict=False)
    logits = network(features=torch.from_numpy(oracle.recorded["C__logmel_db"])[None])
    assert oracle.difference("C/clipwise_logits", logits) > 50 * oracle.tolerance("C/clipwise_logits")


def test_a_file_without_one_of_its_tensors_is_refused(published, oracle):
    state = wrapped(oracle)
    del state["state_dict"]["sed_model.layers.2.blocks.4.attn.qkv.bias"]
    with pytest.raises(WeightsError, match=r"1 of 178 tensors are missing.*layers\.2\.blocks\.4\.attn\.qkv\.bias"):
        key_tree.load_official(published, state, htsat)


def test_the_derived_tables_are_the_authors_own(published, oracle):
    tables = dict(published.named_buffers())
    for key, row in oracle.keys["tensors"].items():
        if key.endswith("relative_position_index"):
            assert zlib.crc32(tables[key].numpy().tobytes()) == row[3], key
        if key.endswith("attn_mask"):
            assert list(tables[key].shape) == row[0] and set(tables[key].unique().tolist()) == {-100.0, 0.0}
    assert tables["layers.0.blocks.1.attn_mask"].sum() == -3174400


@pytest.mark.parametrize(
    ("name", "changes"),
    [("htsat_tiny_audioset", {}), ("htsat_base_527", {"embed_dim": 128, "depths": (2, 2, 12, 2)})],
)
def test_the_key_tree_of_every_official_size_is_ours_and_the_leftovers(oracle, name, changes):
    recorded = json.loads((oracle.folder / "digests.json").read_text())[name]
    variant = dataclasses.replace(AUDIOSET, architecture={**AUDIOSET.architecture, **changes})
    with torch.device("meta"):
        network = htsat.networks().network(variant, 527, 0)
    ours = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    derived = {key: tuple(b.shape) for key, b in network.named_buffers() if key.rpartition(".")[2] in htsat.DERIVED}
    leftovers = dict(zip(htsat.LEFTOVERS, [(513, 1, 1024), (513, 1, 1024), (513, 64), (527, 527), (527,)], strict=True))
    official = ours | derived | leftovers
    assert len(official) == len(ours) + len(derived) + len(leftovers) == recorded["n_keys"]
    lines = sorted(f"{key} {','.join(map(str, shape))}" for key, shape in official.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == recorded["digest"]
    assert set(htsat.translate({f"sed_model.{key}": None for key in official})) == set(ours)
    unused = sum(torch.Size(shape).numel() for shape in leftovers.values())
    assert sum(p.numel() for p in network.parameters()) + unused == recorded["n_params"]


def test_our_own_names_are_read_as_they_are(small):
    state = small.state_dict()
    translated = htsat.translate(state)
    assert list(translated) == list(state) and all(translated[key] is value for key, value in state.items())


def test_a_short_clip_is_repeated_whole_and_then_stretched(small):
    """A clip that fits exactly 4 times is heard as 4 of them; one of 40 frames as 3 of them, 120 frames on 128."""
    clip = decibels(2, 32, 32)
    torch.testing.assert_close(small.classify(clip), small.classify(clip.repeat(1, 4, 1)))
    clip = decibels(2, 40, 32)
    fitted = small.fitted(clip)
    assert fitted.shape == (2, 128, 32)
    torch.testing.assert_close(fitted[:, [0, -1]], clip[:, [0, -1]])  # corners stay where they are
    torch.testing.assert_close(small.classify(clip), small.classify(clip.repeat(1, 3, 1)))


@pytest.mark.parametrize("frames", [129, 192, 193, 600])
@torch.no_grad()
def test_a_long_clip_is_heard_in_overlapping_windows_whose_logits_are_averaged(small, frames):
    clip = decibels(2, frames, 32)
    windows = small.fitted(clip).unflatten(0, (2, -1))
    count = windows.shape[1]
    starts = [round(float((clip[0] - window[0]).square().sum(1).argmin())) for window in windows[0]]
    assert starts[0] == 0 and starts[-1] == frames - 128 and count == 1 + -(-(frames - 128) // 64)
    gaps = {later - earlier for earlier, later in itertools.pairwise(starts)}
    assert max(gaps) <= 64 and max(gaps) - min(gaps) <= 1
    alone = torch.stack([small.classify(clip[:, start : start + 128]) for start in starts])
    torch.testing.assert_close(small.classify(clip), alone.mean(0))


@torch.no_grad()
def test_logits_over_time_and_embeddings_belong_to_the_logits(small):
    for frames, steps in ((50, 8), (128, 8), (192, 16)):
        x = decibels(3, frames, 32)
        over_time = small.framewise(x)
        assert over_time.shape == (3, steps, 5)
        torch.testing.assert_close(over_time.mean(1), small.classify(x))
        heard, pooled = small.embed(x)
        assert heard.shape == (3, steps, 64) and pooled.shape == (3, 64)
        torch.testing.assert_close(heard.mean(1), pooled)
    # where the head hears all frequencies alike and no neighbours in time, it needs no more than the pooled vector
    small.tscam_conv.weight.copy_(small.tscam_conv.weight[:, :, :1, :].expand_as(small.tscam_conv.weight))
    small.tscam_conv.weight[..., [0, 2]] = 0
    heads = small.tscam_conv.weight.sum((2, 3))
    torch.testing.assert_close(pooled @ heads.T + small.tscam_conv.bias, small.classify(x))


def test_waveforms_too_short_or_too_long_are_refused(small):
    assert small(torch.zeros(1, 15 * 320)).shape == (1, 5)
    for samples in (15 * 320 - 1, 6000 * 320):
        with pytest.raises(DataError, match="this backbone accepts"):
            small(torch.zeros(1, samples))


def test_a_copy_and_a_saved_file_compute_the_same(small, tmp_path):
    x = decibels(2, 128, 32)
    expected = small.classify(x)
    assert torch.equal(copy.deepcopy(small).classify(x), expected)
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    again = htsat.networks().network(small_variant(), 5, 1).eval()
    assert not torch.equal(again.classify(x), expected)
    key_tree.load_official(again, load_file(tmp_path / "small.safetensors"), htsat)
    assert torch.equal(again.classify(x), expected)


def test_the_same_seed_gives_the_same_network_and_leaves_other_randomness_alone():
    torch.manual_seed(3)
    untouched = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (htsat.networks().network(small_variant(), 5, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), untouched)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.tscam_conv.weight, other.tscam_conv.weight)


def test_only_the_head_depends_on_the_classes(small):
    more = htsat.networks().network(small_variant(), 7, 0).state_dict()
    differing = {key for key, value in small.state_dict().items() if value.shape != more[key].shape}
    assert differing == {f"{AUDIOSET.head_path}.weight", f"{AUDIOSET.head_path}.bias"}
    assert small.tscam_conv.kernel_size == (2, 3)  # both frequencies of its grid


@pytest.mark.parametrize(
    "changes",
    [
        {"window_size": 8},
        {"num_mel_bins": 16, "depths": (1, 1), "num_heads": (2, 2)},
        {"patch_size": 2, "embed_dim": 8},
    ],
)
def test_other_architectures_run(changes):
    variant = small_variant(**changes)
    network = htsat.networks().network(variant, 3, 0)
    mel_bins = variant.architecture["num_mel_bins"]
    logits = network(features=decibels(2, 64 * 64 // mel_bins, mel_bins))
    assert logits.shape == (2, 3) and logits.isfinite().all()


def test_half_precision_stays_near_full_precision(small):
    x = decibels(2, 100, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = small.classify(x)
    torch.testing.assert_close(logits.float(), small.classify(x), atol=0.05, rtol=0.1)


def adaptable(network):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [p for p, m in network.named_modules() if isinstance(m, kinds) and getattr(m, "groups", 1) == 1]


def with_lora(network, paths, r=16):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(network, LoraConfig(r=r, target_modules=paths))
    return model, [m for m in model.modules() if hasattr(m, "lora_B")]


def test_every_module_that_lora_can_adapt_gets_a_gradient(small):
    paths = adaptable(small)
    assert len(paths) == 1 + 6 * 4 + 2 + 1
    model, layers = with_lora(small.train(), paths, r=2)
    assert len(layers) == len(paths)
    model(features=decibels(2, 100, 32)).square().sum().backward()
    for path, layer in zip(paths, layers, strict=True):
        assert layer.lora_B["default"].weight.grad.abs().max() > 0, path


@pytest.mark.parametrize(
    ("roles", "wrapped_layers", "trainable"),
    [
        (["attention.qkv", "attention.out"], 24, 423_936),
        (["attention.qkv", "attention.out", "mlp.in", "mlp.out", "merge"], 51, 1_195_008),
    ],
)
def test_lora_of_rank_16_has_the_golden_number_of_parameters(roles, wrapped_layers, trainable):
    with torch.device("meta"):
        network = htsat.networks().network(AUDIOSET, 40, 0)
        paths = [path for path, _ in network.named_modules() if htsat.role(path)[0] in roles]
        model, layers = with_lora(network, paths)
    assert len(paths) == len(layers) == wrapped_layers
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


def test_every_module_with_weights_has_a_role_and_every_block_a_number():
    with torch.device("meta"):
        network = htsat.networks().network(AUDIOSET, 40, 0)
    roles = {path: htsat.role(path) for path, _ in network.named_modules()}
    for path, module in network.named_modules():
        assert (getattr(module, "weight", None) is not None) == bool(roles[path][0]), path
    blocks = [number for path, (_, number) in roles.items() if path.endswith(".mlp")]
    assert blocks == list(range(12))
    assert roles["layers.2.blocks.3.attn.qkv"] == ("attention.qkv", 7)
    assert roles["layers.1.downsample.reduction"] == ("merge", None)
    assert roles["patch_embed.proj"] == ("patch", None) and roles["tscam_conv"] == ("head", None)
