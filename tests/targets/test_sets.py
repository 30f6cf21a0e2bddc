"""Recommended sets: what one click ticks in each family, and what a run gets that names no targets."""

from dataclasses import replace

import pytest

from sousa_engine import backbones, targets
from sousa_engine.core.errors import UserError
from sousa_engine.runs import prepare

# variant -> set -> (modules, parameters of LoRA at rank 16)
PUBLISHED = {
    "ast-base": {
        "attention": (48, 1_179_648),
        "attention+mlp": (72, 2_654_208),
        "all-linear": (72, 2_654_208),
    },
    "htsat-audioset": {
        "attention": (24, 423_936),
        "attention+mlp": (48, 1_130_496),
        "all-linear": (51, 1_195_008),  # the three that merge patches too
    },
    "beats-iter3-plus": {
        "attention": (48, 1_179_648),
        "attention+mlp": (72, 2_654_208),
        "all-linear": (85, 2_688_512),  # the gates of the positions and the projection of the patches too
    },
    "mn10_as": {
        "se": (16, 162_560),
        "se+pointwise": (46, 376_832),
        "all-linear": (17, 198_400),  # the layer under the head too
    },
    "mn10_as_fc": {"se": (16, 162_560), "se+pointwise": (46, 376_832), "all-linear": (16, 162_560)},
    "dymn10_as": {"se+pointwise": (46, 244_992), "all-linear": (60, 425_216)},  # no squeeze and excitation
}


@pytest.fixture(params=sorted(backbones.VARIANTS))
def outline(request):
    return targets.load_outline(request.param)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_each_family_has_its_own_sets_with_known_sizes(variant):
    outline = targets.load_outline(variant)
    found = {
        name: (len(paths), targets.count(outline, paths, r=16, head="freeze", num_classes=40).adapter_parameters)
        for name, paths in targets.recommended_sets(outline).items()
    }
    assert found == PUBLISHED[variant]


def test_sets_hold_what_can_be_adapted_in_tree_order_and_never_the_head(outline):
    order = [node.path for node in outline.nodes if node.adaptable and not outline.in_head(node.path)]
    sets = targets.recommended_sets(outline)
    for name, paths in sets.items():
        assert paths, name
        assert [path for path in order if path in set(paths)] == list(paths), name


def test_what_is_joined_is_more_than_its_first_half(outline):
    sets = targets.recommended_sets(outline)
    for joined in sets.keys() & {"attention+mlp", "se+pointwise"}:
        assert set(sets.get(joined.split("+")[0], ())) < set(sets[joined])


def test_a_run_without_targets_gets_attention_and_mlp_or_else_se_and_pointwise(outline):
    has_attention = any(node.role.startswith("attention.") for node in outline.nodes)
    name = targets.default_set(outline)
    assert name == ("attention+mlp" if has_attention else "se+pointwise")
    lora = prepare.prepare({"model": {"variant": outline.variant}}).config.lora
    assert tuple(target.path for target in lora.targets) == targets.recommended_sets(outline)[name]
    assert lora.target_set == name


def without(outline, *roles):
    """The outline as if it had no module of these roles."""
    return replace(outline, nodes=tuple(n for n in outline.nodes if not n.role.startswith(roles)))


def test_sets_without_members_are_not_offered():
    ast, mn = targets.load_outline("ast-base"), targets.load_outline("mn10_as")
    assert list(targets.recommended_sets(without(ast, "mlp"))) == ["attention", "all-linear"]
    assert targets.default_set(without(ast, "mlp")) == "attention"
    assert list(targets.recommended_sets(without(ast, "attention"))) == ["all-linear"]
    assert targets.default_set(without(ast, "attention")) == "all-linear"
    assert list(targets.recommended_sets(without(mn, "pointwise"))) == ["se", "all-linear"]
    assert targets.default_set(without(mn, "pointwise")) == "se"
    assert list(targets.recommended_sets(without(mn, "se"))) == ["se+pointwise", "all-linear"]


def test_the_name_of_a_set_is_a_target_where_the_family_has_it():
    mn = targets.load_outline("mn10_as")
    assert targets.resolve_sets(mn, ["se"]).paths == targets.recommended_sets(mn)["se"]
    with pytest.raises(UserError, match=r"'attention' is not a module of mn10_as"):
        targets.resolve_sets(mn, ["attention"])
