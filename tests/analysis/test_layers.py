"""What is made of update norms: table, grid, chart, the run without the weakest; and the sets of an ablation."""

import itertools
import math

import pytest

from sousa_engine import targets
from sousa_engine.analysis.charts.layers import layers_figure, layers_info, percent
from sousa_engine.analysis.layers import ablations, grid, pruned, ranked, strongest, updates
from sousa_engine.core.config import RunConfig, differences
from sousa_engine.core.errors import TargetError
from sousa_engine.core.methods import METHODS
from sousa_engine.core.records import UPDATE, MetricPoint

PREFIX = "audio_spectrogram_transformer.layers"
TICKED = (  # out of tree order, as an old run may have them
    f"{PREFIX}.2.mlp.fc1", f"{PREFIX}.0.attention.v_proj", f"{PREFIX}.0.attention.q_proj",
    "audio_spectrogram_transformer.embeddings.patch_embeddings.projection",
)  # fmt: skip


@pytest.fixture
def outline():
    return targets.load_outline("ast-mini")


def config(outline, paths=TICKED, **lora):
    targets = [target.model_dump() for target in outline.targets(paths)]
    return RunConfig.model_validate({"name": "a name", "seed": 3, "lora": {"targets": targets, "r": 4, **lora}})


def measured(**norms):
    """Points as the store gives them, by the end of a path; the others of TICKED are not measured."""
    found = {path: value for end, value in norms.items() for path in TICKED if path.endswith(end)}
    return [MetricPoint(metric=UPDATE + path, step=38, value=value, epoch=2) for path, value in sorted(found.items())]


def table(outline, trainable=100_000, **norms):
    norms = norms or {"fc1": 0.02, "v_proj": 0.05, "q_proj": 0.01, "projection": 0.03}
    return updates(config(outline), outline, measured(**norms), trainable)


def test_each_target_has_its_place_its_norm_and_what_it_costs(outline):
    found = table(outline)
    assert (found.step, found.epoch) == (38, 2)
    assert [target.path for target in found.targets] == list(TICKED[::-1])
    patch, *_, first = found.targets
    assert (first.layer, first.role, first.norm) == (2, "mlp.in", 0.02)
    assert (patch.layer, patch.role, patch.norm) == (None, "patch", 0.03)
    counted = [targets.count(outline, [p], r=4, head="freeze", num_classes=40).trainable for p in TICKED[::-1]]
    assert [target.parameters for target in found.targets] == counted
    assert [target.share for target in found.targets] == [cost / 100_000 for cost in counted]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.takes_targets])
def test_what_trains_without_some_targets_is_what_the_tree_counts_for_the_rest(outline, method):
    paths = targets.recommended_sets(outline, METHODS[method])["attention+mlp"]
    ranks = {paths[0]: 2, paths[-1]: 3} if METHODS[method].takes_ranks else {}
    settings = config(outline, paths, method=method, rank_pattern=ranks)

    def trainable(kept):
        own = {path: rank for path, rank in ranks.items() if path in kept}
        return targets.count(
            outline, kept, r=4, head="train", num_classes=40, method=method, ranks=own
        ).trainable  # fmt: skip

    points = [MetricPoint(metric=UPDATE + path, step=1, value=i / 100) for i, path in enumerate(paths)]
    found = updates(settings, outline, points, trainable(paths))
    for kept in (paths, paths[:5], ()):
        assert found.without(kept) == trainable(kept)


def test_what_was_not_measured_or_is_no_number_is_none_and_ranks_last(outline):
    found = table(outline, fc1=math.nan, v_proj=0.05, q_proj=0.05)
    assert [target.norm for target in found.targets] == [None, 0.05, 0.05, None]
    assert [target.path for target in ranked(found)] == [TICKED[2], TICKED[1], TICKED[3], TICKED[0]]


def test_nothing_measured_is_no_table(outline):
    assert updates(config(outline), outline, [], 100) is None
    assert updates(config(outline), outline, measured(fc1=0.1), None) is None


def test_a_target_the_network_lost_since_keeps_its_norm(outline):
    gone = {"path": "encoder.layer.0.query", "kind": "Linear", "shape": [192, 192]}
    old = RunConfig.model_validate({"lora": {"targets": [gone], "r": 4}})
    points = [MetricPoint(metric=UPDATE + gone["path"], step=1, value=0.1)]
    (target,) = updates(old, outline, points, 10_000).targets
    assert (target.layer, target.role, target.norm, target.parameters) == (None, "", 0.1, 4 * 2 * 192)
    assert layers_info(grid(updates(old, outline, points, 10_000))).roles == ("other",)


@pytest.mark.parametrize(("share", "count"), [(1, 4), (0.75, 3), (0.51, 3), (0.5, 2), (0.25, 1), (0.001, 1)])
def test_the_strongest_share_stays_in_tree_order(outline, share, count):
    found = table(outline)
    kept = strongest(found, share)
    assert set(kept) == {target.path for target in ranked(found)[:count]}
    assert list(kept) == [path for path in TICKED[::-1] if path in kept]


@pytest.mark.parametrize("share", [0, -0.5, 1.01])
def test_a_share_of_nothing_or_of_more_than_all_is_refused(outline, share):
    with pytest.raises(ValueError, match=str(share)):
        strongest(table(outline), share)


def test_a_share_counts_without_the_noise_of_binary_fractions(outline):
    paths = [node.path for node in outline.nodes if node.adaptable and not outline.in_head(node.path)][:20]
    points = [MetricPoint(metric=UPDATE + path, step=1, value=0.1) for path in paths]
    found = updates(config(outline, paths), outline, points, 10**6)
    assert [len(strongest(found, percent / 100)) for percent in range(5, 101, 5)] == list(range(1, 21))


def test_the_grid_has_the_trees_order_and_a_gap_where_nothing_was_ticked(outline):
    found = grid(table(outline))
    assert found.layers == (None, 0, 2)
    assert found.roles == ("patch", "attention.query", "attention.value", "mlp.in")
    means = [[cell and cell.mean for cell in row] for row in found.cells]
    assert means == [[0.03, None, None, None], [None, 0.01, 0.05, None], [None, None, None, 0.02]]


def test_a_cell_of_several_targets_holds_their_mean(outline):
    mn = targets.load_outline("mn04_as")
    both = [node.path for node in mn.nodes if node.role == "pointwise" and node.layer == 3]
    assert len(both) == 2
    points = [
        MetricPoint(metric=UPDATE + path, step=1, value=value) for path, value in zip(both, (0.1, 0.3), strict=True)
    ]
    found = grid(updates(config(mn, both), mn, points, 10_000))
    ((cell,),) = found.cells
    assert cell.mean == pytest.approx(0.2) and len(cell.targets) == 2
    assert "mean of 2" in layers_info(found).notes[0][0]
    assert "1 of 2 kept" in layers_info(found, kept=both[:1]).notes[0][0]


def test_the_pruned_run_differs_in_its_targets_alone(outline):
    before = config(outline, target_set="mine", rank_pattern={TICKED[0]: 2, TICKED[1]: 3}, alpha=7)
    after = pruned(before, [TICKED[2], TICKED[1]])
    assert [target.path for target in after.lora.targets] == [TICKED[1], TICKED[2]]
    assert after.lora.ranks == {TICKED[1]: 3}
    assert set(differences([before, after])) == {"name", "lora.targets", "lora.target_set", "lora.rank_pattern"}
    with pytest.raises(ValueError, match="nowhere"):
        pruned(before, ["nowhere"])


# The sets of an ablation


def test_an_ablation_has_all_sets_that_differ_each_once(outline):
    paths = targets.recommended_sets(outline)["attention"]
    sets = ablations(outline, [*paths[::-1], outline.head_layer.path])
    assert list(sets) == [
        "all",
        *(f"without attention.{part}" for part in ("query", "key", "value", "out")),
        *(f"attention.{part} alone" for part in ("query", "key", "value", "out")),
        "early layers",
        "late layers",
    ]
    assert sets["all"] == paths
    assert len(sets["without attention.query"]) == 12 and len(sets["attention.query alone"]) == 4
    assert set(sets["early layers"]) | set(sets["late layers"]) == set(paths)
    assert all(f"{PREFIX}.{i}." in path for i, path in zip((0,) * 4 + (1,) * 4, sets["early layers"], strict=True))


@pytest.mark.parametrize("variant", ["ast-base", "mn10_as", "dymn04_as", "htsat-audioset", "beats-iter3"])
def test_no_set_is_empty_twice_there_or_has_the_head(variant):
    outline = targets.load_outline(variant)
    every = [node.path for node in outline.nodes if node.adaptable]
    sets = ablations(outline, every)
    assert sets["all"] == tuple(path for path in every if not outline.in_head(path))
    assert all(sets.values()) and len(set(map(frozenset, sets.values()))) == len(sets) > 5
    assert not [path for members in sets.values() for path in members if outline.in_head(path)]
    assert all(list(members) == [path for path in every if path in set(members)] for members in sets.values())


def test_sets_that_would_be_the_same_keep_their_first_name(outline):
    assert list(ablations(outline, [TICKED[1]])) == ["all"]
    assert list(ablations(outline, TICKED[1:3])) == ["all", "without attention.query", "without attention.value"]
    assert list(ablations(outline, [])) == [] == list(ablations(outline, [outline.head_layer.path]))
    odd = [f"{PREFIX}.{layer}.mlp.fc1" for layer in range(3)]
    sets = ablations(outline, odd)
    assert (sets["early layers"], sets["late layers"]) == ((odd[0],), tuple(odd[1:]))


def test_an_ablation_of_what_is_no_module_is_refused(outline):
    with pytest.raises(TargetError, match="q_proj"):
        ablations(outline, [f"{PREFIX}.0.attention.query"])


# The chart


def test_the_chart_tells_per_cent_and_fades_what_is_left_out(outline):
    found = table(outline)
    info = layers_info(grid(found), kept=strongest(found, 0.5))
    assert info.layers == ("outside", "0", "2")
    assert info.texts[1] == ("", "1.00", "5.00", "")
    assert info.fades == ((False,) * 4, (False, True, False, False), (False, False, False, True))
    assert "left out" in info.notes[1][1] and "left out" not in info.notes[1][2]
    figure = layers_figure(info)
    assert figure.data[0].z[1] == [None, None, 0.05, None]
    faded = figure.data[1]
    drawn = dict(zip(zip(faded.y, faded.x, strict=True), faded.text, strict=True))
    assert drawn == {(1, 1): "<s>1.00</s>", (2, 3): "<s>2.00</s>"}


def test_what_was_not_measured_is_a_dash_and_what_was_not_ticked_is_empty(outline):
    info = layers_info(grid(table(outline, v_proj=0.05)))
    assert info.texts == (("–", "", "", ""), ("", "–", "5.00", ""), ("", "", "", "–"))
    assert not any(itertools.chain(*info.fades))
    assert layers_figure(info).data[0].zmax == 0.05


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0.00"),
        (0.5, "50.0"),
        (0.1, "10.0"),
        (0.0999, "9.99"),
        (0.0123, "1.23"),
        (0.001, "0.10"),
        (1.2e-5, "0.0012"),
    ],
)
def test_small_shares_keep_two_digits(share, text):
    assert percent(share) == text
