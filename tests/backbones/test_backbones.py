import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
from parity.oracle import Oracle
from safetensors.torch import save_file

from sousa_engine import backbones, frontends
from sousa_engine.backbones import ast, key_tree
from sousa_engine.core.errors import DataError, UnknownNameError

BODY = "audio_spectrogram_transformer"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def oracle():
    return Oracle("ast_base_audioset")


@pytest.fixture(scope="module")
def published(oracle, tmp_path_factory):
    """A file like the authors': the keys of audioset_10_10_0.4593.pth with its prefix, the parity weights."""
    path = tmp_path_factory.mktemp("published") / "audioset_10_10_0.4593.pth"
    torch.save({f"module.{key}": torch.from_numpy(value) for key, value in oracle.state().items()}, path)
    return path


@pytest.fixture(scope="module")
def base(published):
    """AST base with 527 classes and everything from that file, its head too."""
    return backbones.load_official("ast-base", published)


@pytest.fixture
def mini(workspace):
    return backbones.open_network("ast-mini", num_classes=7, weights="random", workspace=workspace).module.eval()


def padded(oracle, clip):
    """A clip's raw filter bank, filled up to 1024 frames with zeros as the authors do."""
    features = frontends.log_mel(torch.from_numpy(oracle.clip(clip))[None], backbones.variant("ast-base").front_end)
    return torch.nn.functional.pad(features, (0, 0, 0, 1024 - features.shape[1]))


def forward(network, features, variant="ast-base"):
    with torch.no_grad():
        if hasattr(network, "front_end"):
            return network(features=features)
        return network(frontends.normalise(features, backbones.variant(variant).front_end)).logits


@pytest.mark.parametrize("clip", ["A", "B"])
def test_every_stage_of_ast_base_equals_the_authors_network(base, oracle, clip):
    seen = {}
    body = base.audio_spectrogram_transformer
    places = {"patch": body.embeddings.patch_embeddings, "tokens_in": body.embeddings}
    places |= {f"block{i}": body.layers[i] for i in (0, 5, 11)}
    hooks = [m.register_forward_hook(lambda *a, name=n: seen.update({name: a[2]})) for n, m in places.items()]
    hooks.append(base.classifier.register_forward_pre_hook(lambda _, inputs: seen.update(pooled=inputs[0])))
    seen["logits"] = forward(base, padded(oracle, clip))
    for hook in hooks:
        hook.remove()
    assert set(seen) == {"patch", "tokens_in", "block0", "block5", "block11", "pooled", "logits"}
    for stage, found in seen.items():
        name = f"{clip}/{stage}"
        assert oracle.difference(name, found) <= oracle.tolerance(name), name


SIZES = {"ast_tiny224": (192, 3), "ast_small224": (384, 6)}  # width and heads; the others are base's
DIGESTS = json.loads((Path(__file__).parents[1] / "parity" / "ast_base_audioset" / "digests.json").read_text())


@pytest.mark.parametrize("size", DIGESTS)
def test_the_authors_key_tree_of_every_size_is_what_translate_reads(size, oracle):
    """Each name of theirs, with the shape our network of that size gives it, makes the digest of their state dict."""
    facts, published = DIGESTS[size], backbones.variant("ast-base")
    width, heads = SIZES.get(size, (768, 12))
    architecture = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "frequency_stride": facts["fstride"],
        "time_stride": facts["tstride"],
    }
    with torch.device("meta"):
        variant = dataclasses.replace(published, architecture={**published.architecture, **architecture})
        ours = ast.networks().network(variant, 527, 0).state_dict()
        lines, parameters = [], 0
        for name in oracle.keys["tensors"]:
            rows = 3 * width if ".qkv." in name else 1
            names = list(ast.translate({name: torch.empty(rows)}))
            shape = (1000, width)[: 2 if name.endswith("weight") else 1]  # ImageNet's heads, which nobody uses
            if names:
                shape = (len(names) * ours[names[0]].shape[0], *ours[names[0]].shape[1:])
            lines.append(f"{name} {','.join(map(str, shape))}")
            parameters += math.prod(shape)
    assert (len(lines), parameters) == (facts["n_keys"], facts["n_params"])
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == facts["digest"]


def test_one_wrong_tensor_would_be_noticed(base, oracle):
    """Shown on the tensor that changes the logits least of all."""
    key = min(oracle.info["min_single_tensor_sensitivity"].items(), key=lambda item: item[1])[0]
    right = {key: torch.from_numpy(oracle.tensor(key))}
    wrong = {key: torch.from_numpy(oracle.tensor(key, salt="#"))}
    try:
        base.load_state_dict(ast.translate(wrong), strict=False)
        assert oracle.difference("B/logits", forward(base, padded(oracle, "B"))) > 500 * oracle.tolerance("B/logits")
    finally:
        base.load_state_dict(ast.translate(right), strict=False)


def test_the_file_of_the_hub_in_its_old_names_loads_the_same_weights(base, oracle, tmp_path, workspace):
    today = base.state_dict()
    old_names = {}
    for key in oracle.hub_shapes:
        translated = ast.translate({key: None})
        (old_names[key],) = translated
    assert set(old_names.values()) == set(today)
    path = tmp_path / "model.safetensors"
    save_file({old: today[new].contiguous() for old, new in old_names.items()}, path)
    assert {k: tuple(v.shape) for k, v in key_tree.read(path).items()} == oracle.hub_shapes
    network = backbones.open_network("ast-base", num_classes=40, weights=str(tmp_path), workspace=workspace)
    assert re.fullmatch(r"pretrained: model\.safetensors, sha256 [0-9a-f]{12}", network.weights_label)
    for key, value in network.module.state_dict().items():
        assert key.startswith("classifier.") or torch.equal(value, today[key]), key
    assert network.module.classifier.dense.weight.shape == (40, 768)


def test_the_authors_file_builds_a_network_with_a_new_head(base, published, workspace):
    network = backbones.open_network("ast", num_classes=40, weights=str(published), workspace=workspace, seed=1)
    assert "audioset_10_10_0.4593.pth" in network.weights_label
    trained = base.state_dict()
    fresh = backbones.build("ast", num_classes=40, seed=1).state_dict()
    for key, value in network.module.state_dict().items():
        assert torch.equal(value, fresh[key] if key.startswith("classifier.") else trained[key]), key


@pytest.mark.parametrize("name", ["ast-base", "ast-mini"])
def test_the_network_has_the_modules_and_parameters_of_the_plain_transformers_model(name):
    from transformers import ASTConfig, ASTForAudioClassification

    variant = backbones.variant(name)
    with torch.device("meta"):
        ours = ast.networks().network(variant, 40, 0)
        plain = ASTForAudioClassification(ASTConfig(**variant.architecture, num_labels=40))
    assert [path for path, _ in ours.named_modules()] == [path for path, _ in plain.named_modules()]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert isinstance(ours, ASTForAudioClassification) and ours.config._attn_implementation == "sdpa"
    assert variant.parameters == sum(p.numel() for p in plain.parameters())


def test_every_variant_says_where_it_comes_from():
    for name, variant in backbones.VARIANTS.items():
        assert variant.name == name and backbones.variant(name) is variant
        assert all((variant.title, variant.description, variant.licence, variant.source, variant.needs))
    assert backbones.variant("ast").name == "ast-base"
    with pytest.raises(UnknownNameError, match="ast-mini"):
        backbones.variant("ast-mni")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.95])
def test_a_short_clip_gets_the_middle_of_the_position_embedding(mini, share):
    """Equal to a plain network built for that length, its positions cut as the authors' code cuts them."""
    from transformers import ASTConfig, ASTForAudioClassification

    variant = backbones.variant("ast-mini")
    spec, settings = variant.front_end, variant.architecture
    frames = spec.min_frames + int(share * (settings["max_length"] - spec.min_frames))
    rows, columns = mini.audio_spectrogram_transformer.embeddings.get_shape(mini.config)
    kept = (frames - settings["patch_size"]) // settings["time_stride"] + 1
    first = math.floor(columns / 2) - math.floor(kept / 2)
    assert kept < columns
    state = mini.state_dict()
    key = f"{BODY}.embeddings.position_embeddings"
    table = state[key][:, 2:].reshape(1, rows, columns, -1)[:, :, first : first + kept]
    state[key] = torch.cat((state[key][:, :2], table.reshape(1, rows * kept, -1)), dim=1)
    short = ASTForAudioClassification(ASTConfig(**{**settings, "max_length": frames, "num_labels": 7}))
    short.load_state_dict(state)
    features = torch.randn(2, frames, spec.mel_bins)
    torch.testing.assert_close(
        forward(mini, features, "ast-mini"), forward(short.eval(), features, "ast-mini"), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("frames", [500, 1200])
def test_a_long_clip_gets_the_position_embedding_stretched_in_time(mini, frames):
    """Equal to a plain network built for that length, its positions stretched as the authors' code does."""
    from transformers import ASTConfig, ASTForAudioClassification

    variant = backbones.variant("ast-mini")
    spec, settings = variant.front_end, variant.architecture
    rows, columns = mini.audio_spectrogram_transformer.embeddings.get_shape(mini.config)
    wanted = (frames - settings["patch_size"]) // settings["time_stride"] + 1
    assert wanted > columns
    state = mini.state_dict()
    key = f"{BODY}.embeddings.position_embeddings"
    table = state[key][:, 2:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, size=(rows, wanted), mode="bilinear", align_corners=False)
    table = table.permute(0, 2, 3, 1).reshape(1, rows * wanted, -1)
    state[key] = torch.cat((state[key][:, :2], table), dim=1)
    long = ASTForAudioClassification(ASTConfig(**{**settings, "max_length": frames, "num_labels": 7}))
    long.load_state_dict(state)
    features = torch.randn(2, frames, spec.mel_bins)
    torch.testing.assert_close(
        forward(mini, features, "ast-mini"), forward(long.eval(), features, "ast-mini"), atol=1e-5, rtol=1e-5
    )


def test_clip_length_never_changes_the_parameters(mini):
    spec = backbones.variant("ast-mini").front_end
    before = {key: value.clone() for key, value in mini.state_dict().items()}
    for frames in (spec.min_frames, 500):
        forward(mini, torch.randn(1, frames, spec.mel_bins), "ast-mini")
    assert all(torch.equal(value, before[key]) for key, value in mini.state_dict().items())


def test_more_or_fewer_frames_than_the_network_takes_are_refused(mini):
    spec = backbones.variant("ast-mini").front_end
    for frames in (spec.min_frames - 1, spec.max_frames + 1):
        with pytest.raises(DataError, match="this backbone accepts"):
            forward(mini, torch.randn(1, frames, spec.mel_bins), "ast-mini")


def test_the_same_seed_gives_the_same_network_and_leaves_other_randomness_alone():
    def built(seed):
        return backbones.build("ast-mini", num_classes=5, seed=seed)

    torch.manual_seed(3)
    untouched = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = built(1), built(1), built(2)
    assert torch.equal(torch.rand(1), untouched)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.classifier.dense.weight, other.classifier.dense.weight)
    assert one.audio_spectrogram_transformer.embeddings.position_embeddings.std() > 0.01  # it can tell time
