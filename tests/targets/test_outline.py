import subprocess
import sys

import pytest

from sousa_engine import targets
from sousa_engine.core.errors import TargetError, UnknownNameError
from sousa_engine.targets import count, load_outline, resolve, resolve_strict, to_yaml

LAYER = "audio_spectrogram_transformer.layers.3"
SIX = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


@pytest.fixture
def ast():
    return load_outline("ast-base")


def test_ast_base_has_its_167_modules_and_86_219_560_parameters(ast):
    assert len(ast.nodes) == 167
    assert ast.total_parameters == sum(node.own_parameters for node in ast.nodes) == 86_219_560
    assert ast.nodes[0].path == "" and ast.nodes[0].class_name == "AST"


def test_a_node_says_what_it_is_and_what_it_was_called(ast):
    node = ast.node(f"{LAYER}.attention.q_proj")
    assert (node.class_name, node.kind, node.shape, node.parameters) == ("Linear", "Linear", (768, 768), 590_592)
    assert (node.role, node.layer, node.adaptable) == ("attention.query", 3, True)
    assert node.old_path == "audio_spectrogram_transformer.encoder.layer.3.attention.attention.query"
    assert ast.node(LAYER).parameters == 7_087_872 and ast.node(LAYER).kind == ""
    assert ast.node(f"{LAYER}.mlp").old_path == ""
    assert ast.node("classifier.dense").old_path == ""


def test_a_norm_is_not_adaptable_and_says_why(ast):
    norm = ast.node(f"{LAYER}.layernorm_before")
    assert not norm.adaptable and "vector" in norm.reason
    assert norm.shape == (768,)


def test_a_family_name_means_its_published_variant(ast):
    assert load_outline("ast") is ast
    with pytest.raises(UnknownNameError, match="ast-base"):
        load_outline("ats-base")


def test_all_linear_at_rank_8_with_the_head_by_lora_is_1_333_568(ast):
    paths = resolve(ast, ["all-linear"]).paths
    assert len(paths) == 73
    counts = count(ast, paths, r=8, head="lora", num_classes=40)
    assert (counts.layers, counts.trainable, counts.total) == (73, 1_333_568, 86_219_560)
    assert round(counts.percent, 4) == 1.5467


def test_all_linear_at_rank_8_with_the_head_trained_fully_is_1_359_400(ast):
    counts = count(ast, resolve(ast, ["all-linear"]).paths, r=8, head="train", num_classes=40)
    assert (counts.layers, counts.trainable) == (72, 1_359_400)


def test_spec_list_at_rank_16_has_1_916_928_adapter_parameters(ast):
    paths = resolve(ast, ["q_proj", "k_proj", "v_proj", "o_proj", "fc2"]).paths
    counts = count(ast, paths, r=16, head="freeze", num_classes=40)
    assert (counts.layers, counts.adapter_parameters, counts.head_parameters) == (60, 1_916_928, 0)
    assert counts.trainable == counts.adapter_parameters


def test_attention_alone_at_rank_16_is_1_179_648(ast):
    counts = count(ast, resolve(ast, SIX[:4]).paths, r=16, head="freeze", num_classes=40)
    assert (counts.layers, counts.adapter_parameters) == (48, 1_179_648)


def test_the_head_is_counted_once_whether_or_not_it_is_ticked(ast):
    without = resolve(ast, SIX).paths
    for head in ("train", "lora", "freeze"):
        ticked = count(ast, (*without, "classifier.dense"), r=8, head=head, num_classes=40)
        assert ticked == count(ast, without, r=8, head=head, num_classes=40)


def test_counts_follow_the_number_of_classes(ast):
    counts = count(ast, (), r=8, head="train", num_classes=527)
    assert counts.total == 86_594_063
    assert counts.trainable == 1536 + 527 * 769
    assert count(ast, (), r=8, head="lora", num_classes=10).trainable == 8 * (768 + 10)


def test_a_convolution_counts_its_kernel(ast):
    path = "audio_spectrogram_transformer.embeddings.patch_embeddings.projection"
    assert count(ast, [path], r=8, head="freeze", num_classes=40).trainable == 8 * (768 + 16 * 16)


@pytest.mark.parametrize(
    ("old", "today", "modules"),
    [
        ("query", ["q_proj"], 12),
        ("key", ["k_proj"], 12),
        ("value", ["v_proj"], 12),
        ("attention.query", ["q_proj"], 12),
        ("attention.attention.value", ["v_proj"], 12),
        ("attention.output.dense", ["o_proj"], 12),
        ("output.dense", ["o_proj", "fc2"], 24),
        ("intermediate.dense", ["fc1"], 12),
        ("encoder.layer.3.attention.attention.query", [f"{LAYER}.attention.q_proj"], 1),
        ("audio_spectrogram_transformer.encoder.layer.3.output.dense", [f"{LAYER}.mlp.fc2"], 1),
    ],
)
def test_old_names_are_recognised_and_offered_in_todays(ast, old, today, modules):
    (match,) = resolve(ast, [old]).matches
    assert match.via == "old name" and len(match.paths) == modules
    assert list(match.today) == today and today[0] in match.note


def test_the_list_that_once_worked_means_the_same_modules_today(ast):
    old = resolve(ast, ["query", "key", "value", "output.dense"])
    new = resolve(ast, ["q_proj", "k_proj", "v_proj", "o_proj", "fc2"])
    assert old.paths == new.paths and not old.unmatched


def test_dense_among_old_names_is_the_old_dense_not_the_classifier_alone(ast):
    resolution = resolve(ast, ["query", "key", "value", "dense"])
    assert resolution.paths == resolve(ast, ["all-linear"]).paths
    assert resolution.matches[3].today == ("o_proj", "fc1", "fc2", "dense")


def test_dense_alone_is_the_classifier_and_warns_of_what_it_once_meant(ast):
    (match,) = resolve(ast, ["dense"]).matches
    assert match.paths == ("classifier.dense",) and match.via == "suffix"
    assert match.today == ("o_proj", "fc1", "fc2") and "36" in match.note


@pytest.mark.parametrize(
    ("entry", "via", "modules"),
    [
        (f"{LAYER}.mlp.fc1", "path", 1),
        ("mlp.fc1", "suffix", 12),
        ("3.mlp.fc1", "suffix", 1),
        (r".*\.[qv]_proj", "regex", 24),
        (r"/layers\.(0|1)\.attention/", "regex", 8),
        ("all-linear", "all-linear", 73),
    ],
)
def test_an_entry_may_be_a_path_its_end_or_a_regular_expression(ast, entry, via, modules):
    (match,) = resolve(ast, [entry]).matches
    assert (match.via, len(match.paths)) == (via, modules)


def test_a_name_only_matches_at_a_dot(ast):
    assert resolve(ast, ["proj"]).unmatched and resolve(ast, ["_proj"]).unmatched


@pytest.mark.parametrize(("entry", "near"), [("kproj", "k_proj"), ("qury", "q_proj"), ("atention.o_proj", "o_proj")])
def test_an_entry_that_matches_nothing_is_refused_with_the_nearest_names(ast, entry, near):
    (unmatched,) = resolve(ast, ["q_proj", entry]).unmatched
    assert unmatched.paths == () and any(near in name for name in unmatched.nearest)
    with pytest.raises(TargetError, match=near) as error:
        resolve_strict(ast, ["q_proj", entry])
    assert repr(entry) in str(error.value) and "transformers" in str(error.value)


def test_a_name_like_nothing_here_still_gets_names_to_choose_from(ast):
    (unmatched,) = resolve(ast, ["Wqkv"]).unmatched
    assert set(SIX) <= set(unmatched.nearest)


def test_a_block_is_refused_with_the_modules_inside_it(ast):
    (match,) = resolve(ast, [f"{LAYER}.attention"]).unmatched
    assert match.nearest == ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
    assert "ASTAttention" in match.note
    with pytest.raises(TargetError, match="ASTMLP"):
        ast.targets([f"{LAYER}.mlp"])


def test_a_broken_regular_expression_and_an_empty_entry_match_nothing(ast):
    assert "regular expression" in resolve(ast, ["[q"]).unmatched[0].note
    assert resolve(ast, [""]).unmatched and resolve(ast, ["//"]).unmatched


def test_paths_come_in_tree_order_whatever_the_order_of_the_list(ast):
    assert resolve(ast, ["fc2", "q_proj"]).paths == resolve(ast, ["q_proj", "fc2"]).paths


def test_targets_store_path_kind_and_shape_and_an_unknown_path_is_refused(ast):
    (target,) = ast.targets([f"{LAYER}.mlp.fc1"])
    assert (target.path, target.kind, target.shape) == (f"{LAYER}.mlp.fc1", "Linear", (3072, 768))
    with pytest.raises(TargetError, match="Nearest"):
        ast.targets([f"{LAYER}.mlp.fc3"])


def test_all_like_this_is_the_same_module_in_every_layer(ast):
    alike = ast.alike(f"{LAYER}.attention.o_proj")
    assert len(alike) == 12 and f"{LAYER}.attention.o_proj" in alike
    assert {path.rpartition(".")[2] for path in alike} == {"o_proj"}
    assert ast.alike("classifier.dense") == ("classifier.dense",)


@pytest.mark.parametrize(
    "entries", [["q_proj"], SIX, ["all-linear"], ["q_proj", "3.mlp.fc1"], ["dense"], [r"/layers\.[02]\./"]]
)
def test_copied_yaml_means_exactly_the_ticked_modules(ast, entries):
    import yaml

    paths = resolve(ast, entries).paths
    copied = yaml.safe_load(to_yaml(ast, paths))["peft_target_modules"]
    assert resolve(ast, copied).paths == paths


def test_copied_yaml_is_short_where_a_short_name_says_it(ast):
    assert to_yaml(ast, resolve(ast, ["q_proj", "v_proj"]).paths) == "peft_target_modules:\n- q_proj\n- v_proj\n"


def test_search_finds_text_and_regular_expressions(ast):
    assert len(targets.grep(ast, "q_PROJ")) == 12
    assert len(targets.grep(ast, r"/layers\.(0|1)\.mlp\.fc/")) == 4
    assert targets.grep(ast, r"layers\.(0|1)\.mlp\.fc") == targets.grep(ast, r"/layers\.(0|1)\.mlp\.fc/")
    assert targets.grep(ast, "") == ast.nodes


@pytest.mark.parametrize("variant", ["ast-base", "htsat", "beats"])
def test_words_of_a_role_find_the_modules_of_that_role(variant):
    outline = targets.load_outline(variant)
    roles = {node.role for node in outline.nodes if node.role.startswith("mlp.")}
    assert roles == {"mlp.in", "mlp.out"}
    for role in roles:
        group, part = role.split(".")
        for text in (f"{group} {part}", f"{part.upper()}  {group}"):
            assert {node.role for node in targets.grep(outline, text)} == {role}, text


@pytest.mark.parametrize(
    ("text", "said"),
    [("/[/", "unterminated character set"), ("fc[1", "unterminated character set"), ("(", "unterminated subpattern"),
     ("*", "nothing to repeat"), ("/q_proj", "the closing / is missing"), ("/", "the closing / is missing")],
)  # fmt: skip
def test_a_broken_regular_expression_says_what_is_broken(ast, text, said):
    with pytest.raises(TargetError, match=f"is not a regular expression: .*{said}"):
        targets.grep(ast, text)


def test_reading_outlines_and_naming_backbones_never_imports_torch():
    code = (
        "import sys; from sousa_engine import backbones, targets;"
        "outline = targets.load_outline('ast'); backbones.variant('ast').parameters;"
        "targets.resolve(outline, ['q_proj']);"
        "print([m for m in ('torch', 'transformers', 'peft', 'torchaudio') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("variant", "entry", "names"),
    [
        ("htsat", "attention.self.query", ("qkv",)),
        ("htsat-mini", "layers.0.blocks.0.attention.self.value", ("qkv",)),
        ("ast", "v.blocks.3.attn.qkv", ("q_proj", "k_proj", "v_proj")),
        ("ast", "attn.proj", ("o_proj",)),
        ("beats", "query", ("q_proj",)),
        ("beats", "in_proj", ("q_proj", "k_proj", "v_proj")),
        ("beats", "mlp.0", ("fc1",)),
    ],
)
def test_a_name_of_another_network_is_answered_with_the_modules_of_its_role(variant, entry, names):
    (match,) = resolve(load_outline(variant), [entry]).unmatched
    assert match.nearest == names


@pytest.mark.parametrize("variant", ["efficientat", "efficientat-mini", "dymn10_as"])
@pytest.mark.parametrize("entry", ["attention_pool.0", "0.0", "1", "query", "block.9.9"])
def test_no_bare_number_is_offered_as_a_name(variant, entry):
    for match in resolve(load_outline(variant), [entry]).unmatched:
        assert match.nearest and not any(name.replace(".", "").isdecimal() for name in match.nearest)


@pytest.mark.parametrize(
    ("variant", "entry", "layers"),
    [
        ("htsat", "attention.output.dense", 12),
        ("htsat", "layers.2.blocks.5.intermediate.dense", 1),
        ("beats", "attention.k_proj", 12),
        ("beats", "encoder.layers.0.feed_forward.output_dense", 1),
        ("efficientat", "features.4.block.2.fc1", 1),
    ],
)
def test_names_of_transformers_and_torchvision_are_read_as_old_names(variant, entry, layers):
    (match,) = resolve(load_outline(variant), [entry]).matches
    assert (match.via, len(match.paths)) == ("old name", layers)
