"""What a sweep asks, before any run: read, refused with the cure, expanded."""

import pytest

from sousa_engine.core import grammar, sweep_spec
from sousa_engine.core.errors import ConfigError

TWO = {"model": ["ast-mini", "beats-mini"], "targets": ["core", ["q_proj", "v_proj"]]}


def test_a_grid_is_every_combination_the_last_axis_fastest():
    spec = sweep_spec.build({"axes": TWO, "seeds": [0, 1, 2]})
    assert [sweep_spec.label(setting) for setting in sweep_spec.combinations(spec.axes)] == [
        "ast-mini · core",
        "ast-mini · q_proj,v_proj",
        "beats-mini · core",
        "beats-mini · q_proj,v_proj",
    ]
    assert (spec.trial_count, spec.run_count, spec.title) == (4, 12, "model × targets")


def test_a_draft_lays_presets_first_and_fields_over_them():
    base = {"data": {"dataset": "tiny"}, "training": {"max_epochs": 3}}
    made = sweep_spec.draft(base, {"lora.r": 4, "lora": "attention", "training.lr": 0.01})
    assert made["lora"] == {**grammar.preset("lora", "attention")["lora"], "r": 4}
    assert made["training"] == {"max_epochs": 3, "lr": 0.01}
    assert base["training"] == {"max_epochs": 3}, "the base is not written into"


def test_a_name_of_the_sweeps_own_means_its_modules():
    spec = sweep_spec.build({"axes": {"targets": ["late", "core"]}, "sets": {"late": ["layers.3"]}})
    assert sweep_spec.build(sweep_spec.yaml.safe_load(sweep_spec.to_yaml(spec))) == spec
    late, core = (sweep_spec.draft({}, setting, spec.sets) for setting in sweep_spec.combinations(spec.axes))
    assert late["lora"] == {"targets": ["layers.3"], "target_set": "late"} and core["lora"] == {"targets": "core"}


@pytest.mark.parametrize(("sets", "said"), [({"lte": ["x"]}, "sets defines 'lte'"), ({"late": []}, "has no modules")])
def test_a_set_that_nothing_names_or_that_is_empty_is_refused(sets, said):
    with pytest.raises(ConfigError, match=said):
        sweep_spec.build({"axes": {"targets": ["late"]}, "sets": sets})


def test_a_setting_wins_over_what_is_the_same_for_all():
    made = sweep_spec.draft({"training": {"lr": 0.1}, "model": {"weights": "random"}}, {"model": "ast-base"})
    assert made["model"] == {"variant": "ast-base", "weights": "random"}
    assert made["training"] == {"lr": 0.1}, "the defaults of the backbone come later, below both"
    made = sweep_spec.draft({"model": {"variant": "ast-mini"}}, {"model": "beats-mini", "training": "quick"})
    assert (made["model"]["variant"], made["training"]["max_epochs"]) == ("beats-mini", 2)


def test_every_field_that_is_offered_as_an_axis_can_be_one():
    offered = sweep_spec.axis_fields()
    assert {"model", "lora", "training.lr", "data.dataset"} <= set(offered)
    for field in offered:
        assert sweep_spec.build({"axes": [{"field": field, "values": [1]}]}).axes[0].field == field
    assert "seed" not in offered and "name" not in offered


def test_yaml_is_read_back_to_an_equal_sweep(tmp_path):
    spec = sweep_spec.build(
        {
            "name": "which rates",
            "sampler": "tpe",
            "trials": 12,
            "seeds": [3, 4],
            "axes": {"training.lr": {"low": "1e-4", "high": 1e-2, "log": True}, "targets": ["core", ["qkv"]]},
            "base": {"data": {"dataset": "tiny"}},
        }
    )
    file = tmp_path / "sweep.yaml"
    file.write_text(sweep_spec.to_yaml(spec))
    assert sweep_spec.read(file) == spec
    assert spec.axis("training.lr").ends == (1e-4, 1e-2) and spec.learns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.lr=1e-3,5e-3", ("training.lr", [0.001, 0.005])),
        ("training.lr=log:1e-4..1e-2", ("training.lr", {"low": 0.0001, "high": 0.01, "log": True})),
        ("lora.r=4..64", ("lora.r", {"low": 4, "high": 64, "log": False})),
        ("targets=core,[q_proj,v_proj]", ("targets", ["core", ["q_proj", "v_proj"]])),
        ("model=ast-mini", ("model", ["ast-mini"])),
        ("training.precision=float32, bf16", ("training.precision", ["float32", "bf16"])),
        ("training.lr=0,01; 0,02", ("training.lr", [0.01, 0.02])),
        ("data=../a,../b", ("data", ["../a", "../b"])),
        ("data=log:a..b", ("data", ["log:a..b"])),
        ('data="a,b",c', ("data", ["a,b", "c"])),
        (r"targets=.*\d{1,2}\.q_proj,core", ("targets", [r".*\d{1,2}\.q_proj", "core"])),
        ("model=007,1e3", ("model", ["007", "1e3"])),
        ("data.clip_s=null,1.5", ("data.clip_s", [None, 1.5])),
    ],
)
def test_an_axis_as_written_on_the_command_line(text, expected):
    assert sweep_spec.parse_axis(text) == expected


@pytest.mark.parametrize(
    "axis",
    [
        {"data.dataset": ["a,b", "c's", "[x]", " d", "log:1..2", "null"]},
        {"lora.targets": ["core", ["q_proj", "v_proj"], [r".*\d{1,2}\.q"], []]},
        {"training.lr": [0.00010089882250230275, 1e-05, 1]},
        {"data.clip_s": [None, 1.5]},
        {"data.strict": [True, False]},
    ],
)
def test_the_text_of_an_axis_is_read_back_to_it(axis):
    ((field, values),) = axis.items()
    text = ",".join(sweep_spec.item_text(value) for value in values)
    assert sweep_spec.parse_axis(f"{field}={text}") == (field, values)


def test_an_axis_takes_the_numbers_of_a_file_as_those_of_the_command_line():
    axes = sweep_spec.build({"axes": {"training.lr": ["1e-3", "0,01", 1], "lora.r": ["04"], "data": [7]}}).axes
    assert [axis.values for axis in axes] == [(0.001, 0.01, 1), (4,), ("7",)]
    with pytest.raises(
        ConfigError, match=r"training\.lr must be a number such as 0\.002 or 2e-3 \(you entered 'fast'\)"
    ):
        sweep_spec.build({"axes": {"training.lr": ["fast"]}})


def test_values_that_differ_in_their_last_digit_are_two():
    assert len(sweep_spec.build({"axes": {"training.lr": [0.0010001234, 0.0010001235]}}).axes[0].values) == 2


@pytest.mark.parametrize("text", ["training.lr", "=3", "training.lr="])
def test_what_is_no_axis_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"is not an axis\. Write field=a,b or field=low\.\.high"):
        sweep_spec.parse_axis(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axes": {"training.rl": [1]}}, r"'training\.rl' is not an axis\. Nearest: training\.lr"),
        ({"axes": {"seed": [0, 1]}}, "Seeds are replicates of each trial, not an axis: list them under seeds"),
        ({"axes": {"training.lr": []}}, "training.lr has no values"),
        ({"axes": {"training.lr": [0.1, 0.1]}}, "training.lr lists 0.1 twice"),
        ({"axes": {"training.lr": {"low": 1, "high": 0.1}}, "sampler": "random", "trials": 3}, "must be below high"),
        ({"axes": {"training.lr": {"low": 0, "high": 1, "log": True}}}, "needs low above 0, not 0"),
        ({"axes": {"training.lr": {"low": 0.1}}}, "give both low and high"),
        ({"axes": {"lora.r": {"low": 1.5, "high": 4}}, "sampler": "tpe", "trials": 3}, "takes whole numbers; 1.5 to 4"),
        ({"axes": {"model": {"low": 1, "high": 4}}}, "model is not a number: list its values"),
        ({"axes": {"training.lr": {"low": 0.1, "high": 1}}}, "A grid needs listed values for training.lr"),
        ({"axes": TWO, "trials": 4}, "A grid takes every combination: remove trials = 4"),
        ({"axes": TWO, "sampler": "tpe"}, "Set how many trials tpe samples"),
        ({"axes": TWO, "seeds": [1, 1]}, "lists one twice, which would repeat a run"),
        ({"axes": TWO, "seeds": [-1]}, "seeds must be 0 or above"),
        ({"axes": TWO, "seeds": [3_000_000_000]}, r"seed must be at most 2,147,483,647 \(you entered 3000000000\)"),
        ({"axes": TWO, "sampler_seed": 2**31}, "sampler_seed must be at most 2,147,483,647"),
        ({"axes": {"targets": ["a\u202eb"]}, "sets": {"a\u202eb": ["qkv"]}}, r"sets: the name .* U\+202E"),
        ({"axes": {"training.lr": [1, 1.0, 2]}}, "training.lr lists 1 twice"),
        (
            {"axes": {"training.lr": [i % 45_000 for i in range(90_000)]}},
            "has 90,000 values; an axis has at most",
        ),
        ({"axes": {**TWO, "lora.targets": ["qkv"]}}, "lora.targets: each axis can be listed only once"),
        ({"axes": {"training.lr": [i / 1000 for i in range(1, 402)]}}, "are 1,203 runs; a sweep has at most 1,000"),
        (
            {"axes": TWO, "sampler": "ahsa", "trials": 3},
            "sampler must be 'grid', 'random', 'tpe' or 'asha' \\(you entered 'ahsa'\\)",
        ),
        ({"axes": {}}, "axes must not be empty"),
        ({"seeds": [1]}, "axes is missing"),
        ({"axes": TWO, "sampler": "tpe", "trials": 0}, "trials must be at least 1"),
        ({"axes": TWO, "seed": [1]}, "A sweep has no field 'seed'. Nearest: seeds"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_the_cure(values, message):
    with pytest.raises(ConfigError, match=message):
        sweep_spec.build(values)


def test_values_that_differ_after_six_digits_are_different():
    axis = sweep_spec.build({"axes": {"training.lr": [0.00123456, 0.001234561]}}).axes[0]
    assert len(set(axis.names)) == 2
    one, two = sweep_spec.combinations([axis])
    assert sweep_spec.same(one) != sweep_spec.same(two) and sweep_spec.same(one) == sweep_spec.same(dict(one))


@pytest.mark.parametrize("field", ["training.lr", "targets"])
def test_too_many_values_are_refused_where_they_are_listed(monkeypatch, field):
    monkeypatch.setattr(grammar, "value", lambda *args: pytest.fail("it was read"))
    with pytest.raises(ConfigError, match=rf"{field} has 90,000 values"):
        sweep_spec.parse_axis(f"{field}=" + ",".join(map(str, range(90_000))))


def test_settings_are_counted_and_numbered_without_building_them():
    spec = sweep_spec.build(
        {"axes": {"lora.r": {"low": 3, "high": 5}, "targets": ["core", "qkv"]}, "sampler": "random", "trials": 2}
    )
    count = sweep_spec.setting_count(spec.axes)
    assert count == 6
    assert [list(sweep_spec.setting_at(spec.axes, number).values()) for number in range(count)] == [
        [r, name] for r in (3, 4, 5) for name in ("core", "qkv")
    ]
    rate = sweep_spec.Axis(field="training.lr", low=0.1, high=0.2)
    assert sweep_spec.setting_count([*spec.axes, rate]) is None


def test_a_sampler_that_learns_has_no_more_trials_than_settings():
    values = {"axes": {"lora.r": {"low": 3, "high": 5}}, "trials": 12, "seeds": [0]}
    assert sweep_spec.build({**values, "sampler": "tpe"}).run_count == 3
    assert sweep_spec.build({**values, "sampler": "random"}).run_count == 12


def test_a_file_that_is_no_sweep_is_refused(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("training: {lr: 0.1}")
    with pytest.raises(ConfigError, match="has no axes"):
        sweep_spec.read(file)
    file.write_text("a: [")
    with pytest.raises(ConfigError, match="is not a YAML file"):
        sweep_spec.read(file)


def test_typed_seeds_are_whole_numbers_between_spaces_or_commas():
    assert sweep_spec.parse_seeds(" 0 1,2,  3 ") == [0, 1, 2, 3]
    for text in ("", "0 one", "1.5", "99999999999"):
        with pytest.raises(ConfigError, match="Seeds must be whole numbers") as error:
            sweep_spec.parse_seeds(text)
        assert error.value.field == "seeds"
