import copy
import dataclasses
import hashlib
import itertools
import json

import pytest
import torch
from parity.oracle import Oracle
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from sousa_engine import frontends
from sousa_engine.backbones import beats, key_tree
from sousa_engine.core.errors import WeightsError

VARIANTS = {variant.name: variant for variant in beats.variants() if not variant.embedded}
PLUS = VARIANTS["beats-iter3-plus"]
SMALL = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "embed_dim": 24,
    "input_patch_size": (8, 32),
    "conv_pos": 6,
    "conv_pos_groups": 4,
    "num_buckets": 16,
    "max_distance": 20,
    "num_mel_bins": 64,
}
LAST_GATE = "encoder.layers.11.self_attn.grep_linear.bias"


class BeatsOracle(Oracle):
    """Some names of the authors' state dict are the same tensor."""

    def tensor(self, name, salt=""):
        entry = self.keys["tensors"][name]
        return super().tensor(entry[5] if len(entry) > 4 else name, salt)


@pytest.fixture(scope="module")
def oracle():
    return BeatsOracle("beats_iter3")


@pytest.fixture(scope="module")
def published(oracle):
    """What torch.load makes of a file like the authors' fine-tuned one, with the parity weights."""
    state = {name: torch.from_numpy(array) for name, array in oracle.state().items()}
    return {"cfg": oracle.keys["cfg"], "model": state, "label_dict": {0: "/m/09x0r"}}


@pytest.fixture(scope="module")
def base(published):
    """BEATs with 527 classes and everything from that file, its head too."""
    network = beats.networks().network(PLUS, 527, 0)
    key_tree.load_official(network, published, beats)
    return network.eval()


def variant(**settings):
    """A small BEATs for 64 mel bins."""
    architecture = {**SMALL, **settings}
    return dataclasses.replace(
        PLUS, name="small", architecture=architecture, front_end=beats.front_end(64, min_frames=8)
    )


def small(num_classes=5, seed=0, **settings):
    return beats.networks().network(variant(**settings), num_classes, seed)


def noise(clips=2, frames=60, bins=64):
    return torch.randn(clips, frames, bins, generator=torch.Generator().manual_seed(0))


def adaptable(network):
    return [
        path
        for path, child in network.named_modules()
        if isinstance(child, torch.nn.Linear) or (isinstance(child, torch.nn.Conv2d) and child.groups == 1)
    ]


@pytest.mark.parametrize("clip", ["A", "B", "C"])
def test_every_stage_from_the_waveform_on_equals_the_authors_network(base, oracle, clip):
    seen = {}
    encoder = base.encoder
    places = {"patch": base.patch_embedding, "patch_ln": base.layer_norm, "proj": base.post_extract_proj}
    places |= {"pos_conv": encoder.pos_conv, "enc_in": encoder.layer_norm, "representation": encoder}
    places |= {f"layer{i}": encoder.layers[i] for i in (0, 1, 5, 11)}
    hooks = [m.register_forward_hook(lambda *a, name=n: seen.update({name: a[2]})) for n, m in places.items()]
    hooks.append(base.predictor.register_forward_pre_hook(lambda _, inputs: seen.update(representation_mean=inputs[0])))
    waveforms = torch.from_numpy(oracle.clip(clip))[None]
    with torch.no_grad():
        seen["probs"] = base(waveforms).sigmoid()
    for hook in hooks:
        hook.remove()
    # In float64, so that one rounding is in the difference and not two: faint bins show them (tests/frontends).
    seen["fbank"] = frontends.normalise(frontends.log_mel(waveforms.double(), PLUS.front_end), PLUS.front_end)
    seen["pos_conv"] = seen["pos_conv"][..., :-1]  # the even kernel's one more
    assert {f"{clip}/{stage}" for stage in seen} == {name for name in oracle.info["outputs"] if name.startswith(clip)}
    for stage, found in seen.items():
        name = f"{clip}/{stage}"
        assert oracle.difference(name, found) <= oracle.tolerance(name), name


def test_a_padded_batch_equals_the_authors_network(base, oracle):
    networks = beats.networks()
    long, short = (torch.from_numpy(oracle.clip(name)) for name in "AC")
    batch = torch.stack((long, torch.nn.functional.pad(short, (0, len(long) - len(short)))))
    samples = torch.zeros(batch.shape, dtype=torch.bool)
    samples[1, len(short) :] = True
    x = frontends.normalise(frontends.log_mel(batch, PLUS.front_end), PLUS.front_end)
    frames = networks.coarser(samples, x.shape[1])
    with torch.no_grad():
        tokens, pooled = base.represent(x, padding=frames)
        probabilities = base.predictor(pooled).sigmoid()
    assert oracle.difference("M/token_padding_mask", networks.coarser(frames, tokens.shape[1])) == 0
    assert oracle.difference("M/representation", tokens) <= oracle.tolerance("M/representation")
    assert oracle.difference("M/probs", probabilities) <= oracle.tolerance("M/probs")
    # The authors' mean is over all tokens here, those of the padding too.
    assert oracle.difference("M/representation_mean", tokens.mean(1)) <= oracle.tolerance("M/representation_mean")


def test_one_wrong_tensor_would_be_noticed(base, oracle):
    """Shown on the tensor that changes the representation least of all, key biases aside: no attention sees those."""
    effects = oracle.info["min_single_tensor_sensitivity_representation"]
    key = min((k for k in effects if not k.endswith("k_proj.bias")), key=effects.get)
    assert key == LAST_GATE
    clip = torch.from_numpy(oracle.clip("C"))[None]
    x = frontends.normalise(frontends.log_mel(clip, PLUS.front_end), PLUS.front_end)
    try:
        base.load_state_dict(beats.translate({key: torch.from_numpy(oracle.tensor(key, salt="#"))}), strict=False)
        with torch.no_grad():
            tokens, _ = base.represent(x)
        # The recorded effect, 5.1e-4, is on clip A.
        assert oracle.difference("C/representation", tokens) > 2 * oracle.tolerance("C/representation")
    finally:
        base.load_state_dict(beats.translate({key: torch.from_numpy(oracle.tensor(key))}), strict=False)


def test_the_key_trees_of_both_kinds_of_files_are_the_authors(oracle):
    digests = json.loads((oracle.folder / "digests.json").read_text())
    with torch.device("meta"):
        network = beats.networks().network(PLUS, 527, 0)
    theirs = {ours: name for name, ours in beats.RENAMED.items()}
    shapes = {theirs.get(name, name): tuple(value.shape) for name, value in network.state_dict().items()}
    table = shapes[beats.TABLE.format(0)]
    shapes |= {beats.TABLE.format(layer): table for layer in range(PLUS.architecture["encoder_layers"])}
    headless = {name: shape for name, shape in shapes.items() if not name.startswith("predictor.")}
    for name, tree in {"beats_iter3_finetuned": shapes, "beats_iter3": headless}.items():
        lines = sorted(f"{key} {','.join(map(str, shape))}" for key, shape in tree.items())
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digests[name]["digest"], name
        assert len(tree) == digests[name]["n_keys"]
    assert sum(p.numel() for p in network.parameters()) == digests["beats_iter3_finetuned"]["n_params"]


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_variant_says_where_its_weights_are_and_that_a_third_party_keeps_them(name):
    found = VARIANTS[name]
    assert found.download.url.endswith(found.download.file) and found.download.url.startswith(found.download.page)
    assert len(found.download.sha256) == 64
    assert "third party" in found.download.note
    assert found.head_path == "predictor" and found.licence == "MIT"


def test_the_published_cfg_is_the_architecture_we_build(oracle):
    for found in VARIANTS.values():
        assert beats.cfg_differences(oracle.keys["cfg"], found.architecture) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_distance", 1280),
        ("num_buckets", 32),
        ("layer_norm_first", True),
        ("deep_norm", False),
        ("gru_rel_pos", False),
        ("activation_fn", "relu"),
        ("encoder_attention_heads", 8),
    ],
)
def test_a_setting_that_keys_and_shapes_do_not_show_is_found_in_cfg(oracle, setting, value):
    (difference,) = beats.cfg_differences({**oracle.keys["cfg"], setting: value}, PLUS.architecture)
    assert difference.startswith(f"{setting} is {value!r} in the file, not ")


def test_a_setting_missing_in_cfg_is_the_default_of_the_authors_code(oracle):
    cfg = {key: value for key, value in oracle.keys["cfg"].items() if key not in ("max_distance", "conv_pos")}
    assert beats.cfg_differences(cfg, PLUS.architecture) == ["max_distance is 1280 in the file, not 800"]


def in_authors_names(network):
    """A state dict as in the authors' files: old names of weight norm, the table under every layer."""
    theirs = {ours: name for name, ours in beats.RENAMED.items()}
    state = {theirs.get(name, name): value.clone() for name, value in network.state_dict().items()}
    table = state[beats.TABLE.format(0)]
    return state | {beats.TABLE.format(layer): table for layer in range(len(network.encoder.layers))}


def test_a_self_supervised_file_loads_all_but_the_head():
    trained, network = small(seed=1), small(num_classes=7)
    head = network.predictor.weight.clone()
    file = {key: value for key, value in in_authors_names(trained).items() if not key.startswith("predictor.")}
    key_tree.load_official(network, {"cfg": {}, "model": file}, beats, head_path="predictor")
    assert torch.equal(network.predictor.weight, head)
    x = noise()
    with torch.no_grad():
        assert torch.equal(network.represent(x)[0], trained.represent(x)[0])
    key_tree.load_official(network, {"cfg": {}, "model": in_authors_names(trained)}, beats, head_path="predictor")
    with pytest.raises(WeightsError, match=r"predictor\.weight"):
        key_tree.load_official(network, {"cfg": {}, "model": file}, beats)


def test_our_own_names_are_read_unchanged_and_tensors_are_never_copied():
    state = small().state_dict()
    found = beats.translate(state)
    assert list(found) == list(state) and all(found[key] is state[key] for key in state)


def test_the_table_may_stand_under_any_layer_but_must_be_the_same_in_all():
    file = in_authors_names(small())
    first, second = (beats.TABLE.format(layer) for layer in (0, 1))
    assert beats.translate({second: file[second]}) == {first: file[second]}
    file[second] = file[second].clone()
    assert beats.translate(file).keys() == small().state_dict().keys()
    file[second][0, 0] += 1e-6
    with pytest.raises(WeightsError, match="share one table"):
        beats.translate(file)


def test_distances_fall_into_buckets_finer_where_they_are_near():
    buckets = beats.networks().distance_buckets(2000, 320, 800, "cpu")
    assert len(buckets) == 3999
    of = dict(zip(range(-1999, 2000), buckets.tolist(), strict=True))
    assert [of[-d] for d in (0, 1, 79, 80, 82, 83)] == [0, 1, 79, 80, 80, 81]
    assert [of[d] for d in (1, 79, 80)] == [161, 239, 240]
    assert of[-777] == 158 and {of[-d] for d in range(778, 2000)} == {159}
    assert all(of[d] == of[-d] + 160 for d in range(1, 2000))


def test_every_pair_of_tokens_gets_the_bias_of_its_distance():
    attention = small().encoder.layers[0].self_attn
    tokens = 30
    buckets = beats.networks().distance_buckets(tokens, 16, 20, "cpu")
    bias = attention.position_bias(tokens, torch.device("cpu"))
    assert bias.shape == (4, tokens, tokens)
    for query, key in itertools.product(range(tokens), repeat=2):
        row = attention.relative_attention_bias.weight[buckets[key - query + tokens - 1]]
        assert torch.equal(bias[:, query, key], row)


def test_attention_and_its_gradients_equal_the_formula():
    attention = small().encoder.layers[0].self_attn.double()
    torch.nn.init.normal_(attention.grep_linear.weight)
    torch.nn.init.normal_(attention.relative_attention_bias.weight)
    x = noise(2, 9, 32).double()

    def formula():
        heads = [
            project(x).reshape(2, 9, 4, 8).permute(0, 2, 1, 3)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        q, k, v = heads
        a, b = torch.sigmoid(attention.grep_linear(q).reshape(2, 4, 9, 2, 4).sum(-1)).chunk(2, dim=-1)
        gate = a * (b * attention.grep_a - 1) + 2
        scores = q @ k.transpose(2, 3) / 8**0.5 + gate * attention.position_bias(9, x.device)
        return attention.out_proj((scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(2, 9, 32))

    parameters = list(attention.parameters())
    weights = noise(2, 9, 32).double()
    ours = attention(x, attention.position_bias(9, x.device))
    torch.testing.assert_close(ours, formula())
    found = torch.autograd.grad((ours * weights).sum(), parameters)
    torch.testing.assert_close(found, torch.autograd.grad((formula() * weights).sum(), parameters))


def test_padding_leaves_what_is_heard_as_it_was():
    network = small().eval()
    x = noise(1, 80)
    padded = torch.cat((x, noise(1, 80) + 1), dim=1)
    padding = torch.arange(160).ge(80)[None]
    with torch.no_grad():
        alone, alone_mean = network.represent(x)
        tokens, mean = network.represent(padded, padding=padding)
    torch.testing.assert_close(tokens[:, : alone.shape[1]], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean, alone_mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [8, 15, 61, 6000])
def test_clips_of_any_length_pass_and_leftover_frames_are_dropped(frames):
    network = small().eval()
    x = noise(1, frames)
    with torch.no_grad():
        logits = network.classify(x)
        whole = network.classify(x[:, : frames // 8 * 8])
    assert logits.shape == (1, 5) and logits.isfinite().all()
    torch.testing.assert_close(logits, whole)


@pytest.mark.parametrize("samples", [16000 * 4, 1520])
def test_waveforms_and_their_features_give_the_same_logits(samples):
    network = small().eval()
    clips = 0.1 * noise(2, samples, 1)[..., 0]
    with torch.no_grad():
        logits = network(clips)
        torch.testing.assert_close(network(features=frontends.log_mel(clips, network.front_end)), logits)
    assert logits.shape == (2, 5) and not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 7),
        ({"input_patch_size": 16}, 3),
        ({"input_patch_size": (8, 64), "time_stride": 4}, 14),
        ({"embed_dim": 32, "conv_pos": 5}, 7),
    ],
)
def test_steps_are_means_over_frequency_and_the_head_hears_their_mean(settings, steps):
    network = small(**settings).eval()
    x = noise(2, 60)
    with torch.no_grad():
        found, pooled = network.embed(x)
        torch.testing.assert_close(network.predictor(pooled), network.classify(x))
    assert found.shape == (2, steps, 32) and pooled.shape == (2, 32)
    torch.testing.assert_close(found.mean(1), pooled)


def test_the_same_seed_gives_the_same_network_and_leaves_other_randomness_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (small(seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["predictor.weight"], other["predictor.weight"])


def test_a_fresh_network_starts_as_the_authors_start():
    """Deep norm: value, out, fc1 and fc2 start smaller by (8 * layers) ** -1/4."""
    network = small(encoder_embed_dim=256, encoder_ffn_embed_dim=512)
    layer = network.encoder.layers[1]
    xavier = (2 / (256 + 256)) ** 0.5
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(xavier, rel=0.05)
    assert layer.self_attn.v_proj.weight.std().item() == pytest.approx(xavier * 16**-0.25, rel=0.05)
    assert layer.fc2.weight.std().item() == pytest.approx((2 / 768) ** 0.5 * 16**-0.25, rel=0.05)
    assert layer.self_attn.grep_linear.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert network.encoder.pos_conv[0].weight.std().item() == pytest.approx((4 / (6 * 256)) ** 0.5, rel=0.05)
    assert not any(p.any() for key, p in layer.named_parameters() if key.endswith("bias") and "norm" not in key)
    with torch.no_grad():
        tokens, _ = network.represent(noise())
    assert tokens.std(1).min() > 0.01  # even frozen and random, it can tell time


def test_a_copy_and_a_saved_file_hear_the_same(tmp_path):
    network = small().eval()
    x = noise()
    save_file(network.state_dict(), tmp_path / "small.safetensors")
    opened = small(seed=1).eval()
    opened.load_state_dict(load_file(tmp_path / "small.safetensors"))
    with torch.no_grad():
        logits = network.classify(x)
        for other in (copy.deepcopy(network), opened):
            assert torch.equal(other.classify(x), logits)
    assert not any("bucket" in key for key in network.state_dict())


def test_a_network_heard_in_inference_mode_still_trains():
    beats.networks().distance_buckets.cache_clear()
    network = small()
    with torch.inference_mode():
        network.classify(noise())
    network.classify(noise()).sum().backward()
    assert network.encoder.layers[0].self_attn.relative_attention_bias.weight.grad.abs().max() > 0


def test_bfloat16_autocast_hears_nearly_the_same():
    network = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network.classify(noise())
    logits.float().sum().backward()
    assert (logits.float() - network.classify(noise())).abs().max() < 0.1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_every_adaptable_module_receives_gradient_on_the_first_step():
    network = small()
    paths = adaptable(network)
    assert len(paths) == 2 * 7 + 3
    module = get_peft_model(network, LoraConfig(r=2, target_modules=paths))
    torch.nn.functional.cross_entropy(module(features=network.front_end.mean + noise()), torch.arange(2)).backward()
    grads = {key: p.grad for key, p in module.named_parameters() if "lora_B" in key}
    assert len(grads) == len(paths)
    for path in paths:
        grad = grads[f"base_model.model.{path}.lora_B.default.weight"]
        assert grad is not None and grad.abs().max() > 0, path


@pytest.mark.parametrize("path", ["self_attn.grep_linear", "self_attn.relative_attention_bias"])
def test_the_gates_or_the_table_can_be_adapted_alone(path):
    """Nothing before the bias asks for a gradient then: see Attention.forward."""
    network = small()
    module = get_peft_model(network, LoraConfig(r=2, target_modules=[f"encoder.layers.0.{path}"]))
    module(features=network.front_end.mean + noise()).sum().backward()
    grads = {key: p.grad for key, p in module.named_parameters() if p.requires_grad}
    assert any(grad is not None and grad.abs().max() > 0 for grad in grads.values())


def test_lora_changes_nothing_at_first_and_merges():
    network = small().eval()
    x = network.front_end.mean + noise()
    with torch.no_grad():
        before = network(features=x)
        module = get_peft_model(network, LoraConfig(r=2, target_modules=adaptable(network))).eval()
        torch.testing.assert_close(module(features=x), before, atol=1e-6, rtol=0)
        for key, parameter in module.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.02)
        adapted = module(features=x)
        merged = module.merge_and_unload(safe_merge=True)
        torch.testing.assert_close(merged(features=x), adapted, atol=1e-5, rtol=0)
    assert merged.state_dict().keys() == small().state_dict().keys()


def test_beats_has_the_known_number_of_trainable_parameters():
    with torch.device("meta"):
        network = beats.networks().network(PLUS, 40, 0)
        wanted = {"attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out"}
        paths = [path for path in adaptable(network) if beats.role(path)[0] in wanted]
        module = get_peft_model(network, LoraConfig(r=16, target_modules=paths))
    assert len(paths) == 72
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == 2_654_208


def test_every_module_with_weights_has_its_role_and_layer():
    network = small()
    found = {
        path: beats.role(path)
        for path, child in network.named_modules()
        if next(child.parameters(False), None) is not None
    }
    assert found.pop("encoder.pos_conv.0.parametrizations.weight") == ("", None)  # the convolution's own
    gates = {path for path, child in network.named_modules() if hasattr(child, "grep_a")}
    assert {path for path, (role, _) in found.items() if not role} == gates
    assert found["patch_embedding"] == found["post_extract_proj"] == ("patch", None)
    assert found["encoder.pos_conv.0"] == ("position", None)
    assert found["encoder.layers.0.self_attn.relative_attention_bias"] == ("position", 0)
    assert found["encoder.layers.1.self_attn.q_proj"] == ("attention.query", 1)
    assert found["encoder.layers.1.self_attn.out_proj"] == ("attention.out", 1)
    assert found["encoder.layers.1.self_attn.grep_linear"] == ("gate", 1)
    assert found["encoder.layers.1.fc1"] == ("mlp.in", 1) and found["encoder.layers.1.fc2"] == ("mlp.out", 1)
    assert found["encoder.layers.1.final_layer_norm"] == ("norm", 1) and found["layer_norm"] == ("norm", None)
    assert found["predictor"] == ("head", None)
