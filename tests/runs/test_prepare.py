"""One backbone has one meaning: whichever name it is given, and whichever way, a run gets the same config."""

from __future__ import annotations

import os
import random

import pytest

from sousa_engine import backbones, targets
from sousa_engine.core import config, grammar, inputs, sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import ConfigError, UnknownNameError, UserError
from sousa_engine.runs import preflight, prepare, sweep_plan, sweep_words

ALIASES = {alias: found.name for found in backbones.VARIANTS.values() for alias in found.aliases}
NAMES = (*backbones.VARIANTS, *ALIASES, *(n for n in grammar.presets("model") if n not in backbones.VARIANTS))


def of_sweep(spec: sweep_spec.SweepSpec) -> RunConfig:
    (setting,) = sweep_spec.combinations(spec.axes)
    return prepare.prepare(sweep_spec.draft(spec.base, setting, spec.sets)).config


def of_file(tmp_path, text: str) -> RunConfig:
    (tmp_path / "run.yaml").write_text(text)
    return prepare.prepare(inputs.yaml_fields(tmp_path / "run.yaml")).config


def all_ways(name: str, tmp_path) -> dict[str, RunConfig]:
    one = {"training.precision": ["float32"]}
    return {
        "train model=NAME": prepare.prepare(grammar.parse([f"model={name}"])).config,
        "train model.variant=NAME": prepare.prepare(grammar.parse([f"model.variant={name}"])).config,
        "a changed run": prepare.prepare(prepare.changed(prepare.prepare({}).config, [f"model={name}"])).config,
        "model: NAME": of_file(tmp_path, f"model: {name}"),
        "model: {variant: NAME}": of_file(tmp_path, f"model: {{variant: {name}}}"),
        "model.variant: NAME": of_file(tmp_path, f"model.variant: {name}"),
        "the library, a name": prepare.prepare({"model": name}).config,
        "the library, a field": prepare.prepare({"model": {"variant": name}}).config,
        "sweep --models NAME": of_sweep(sweep_words.read(["--models", name])),
        "sweep --axis model.variant=NAME": of_sweep(sweep_words.read(["--axis", f"model.variant={name}"])),
        "sweep model=NAME": of_sweep(sweep_words.read([f"model={name}", "--axis", "training.precision=float32"])),
        "an axis": of_sweep(sweep_spec.build({"axes": {"model": [name]}})),
        "base: {model: NAME}": of_sweep(sweep_spec.build({"axes": one, "base": {"model": name}})),
        "base: {model.variant: NAME}": of_sweep(sweep_spec.build({"axes": one, "base": {"model.variant": name}})),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_backbone_means_the_same_run_in_every_place(name, tmp_path):
    wanted = prepare.prepare({"model": {"variant": ALIASES.get(name, name)}}).config
    assert wanted.model.variant == backbones.variant(name).name
    assert {way for way, found in all_ways(name, tmp_path).items() if found != wanted} == set()


def test_the_published_backbones_do_not_train_with_the_rate_of_the_small_ones(workspace):
    spec = sweep_spec.build({"axes": {"model": [*ALIASES]}, "base": {"data": "micro", "model.weights": "random"}})
    found = sweep_plan.plan(spec, workspace)
    rates = {run.config.model.variant: run.config.training.lr for run in found.runs}
    assert rates == {"ast-base": 5e-4, "mn10_as": 1e-3, "htsat-audioset": 5e-4, "beats-iter3-plus": 5e-4}
    assert {run.config.training.batch_size for run in found.runs} == {8, 16}
    assert "The defaults of ast-base: learning rate 0.0005, head learning rate 0.001, batch size 8." in found.notes


def test_what_all_runs_share_wins_over_the_defaults_of_the_backbone():
    found = prepare.prepare(sweep_spec.draft({"training": {"lr": 0.1}}, {"model": "ast-base"})).config.training
    assert (found.lr, found.head_lr, found.batch_size) == (0.1, 1e-3, 8)


def test_an_unknown_backbone_is_answered_with_the_nearest_name_in_every_place():
    for draft in ({"model": "ast_fixd"}, grammar.parse(["model=ast_fixd"]), {"model.variant": "ast_fixd"}):
        with pytest.raises(UnknownNameError, match="ast_fixed"):
            prepare.prepare(draft)


@pytest.mark.parametrize(
    "words",
    [["training=default", "model=ast"], ["model=ast", "training=default"], ["lora=full", "model=mn10_as"]],
)
def test_what_is_asked_for_wins_over_the_defaults_of_the_backbone_wherever_it_stands(words):
    found = prepare.prepare(grammar.parse(words)).config.training
    assert (found.batch_size, found.lr) == (16, 5e-4)


def test_the_preflight_says_whose_defaults_a_run_has(workspace):
    def said(*words: str) -> str:
        settings = prepare.prepare(grammar.parse(["data=micro", *words])).config
        (check,) = [one for one in preflight.preflight(settings, workspace).checks if one.title == "Defaults"]
        return check.detail

    usual = "The defaults of ast-base: learning rate 0.0005, head learning rate 0.001, batch size 8."
    assert said("model=ast") == usual
    assert said("model=ast", "training.lr=0.002") == (
        "Set instead of the defaults of ast-base: learning rate 0.002 (not 0.0005). "
        "The defaults of ast-base: head learning rate 0.001, batch size 8."
    )


def test_the_fields_with_a_default_of_the_backbone_are_those_that_the_preflight_names():
    differ = {name for one in backbones.VARIANTS for name in backbones.default_changes("ast-mini", one)}
    assert backbones.default_changes("ast-mini", "ast-base")["training.batch_size"] == (16, 8)
    assert differ - {"model.variant"} == set(backbones.DEFAULTED)


def test_a_form_that_follows_the_changes_of_defaults_ends_at_those_of_the_backbone():
    for old in backbones.VARIANTS:
        for new in backbones.VARIANTS:
            values = config.build(backbones.defaults(old)).model_dump()
            for name, (_, value) in backbones.default_changes(old, new).items():
                grammar.set_field(values, name, value)
            assert config.build(values) == config.build(backbones.defaults(new))


# A file


SETTINGS = {
    "model": "model=ast-mini",
    "data": "data=micro",
    "lora": "lora=attention",
    "training": "training=quick",
    "augment": "augment=none",
}


def test_a_file_speaks_the_language_of_the_command_line(tmp_path):
    text = "lora.r: 4\n" + "".join(f"{word.replace('=', ': ')}\n" for word in SETTINGS.values())
    wanted = prepare.prepare(grammar.parse(["lora.r=4", *SETTINGS.values()])).config
    assert of_file(tmp_path, text) == wanted
    base = {**dict(word.split("=") for word in SETTINGS.values()), "lora.r": 4}
    assert of_sweep(sweep_spec.build({"axes": {"training.precision": ["float32"]}, "base": base})) == wanted


SHAPES = ("5", "null", "true", "[a, b]", "''", "1.5")


@pytest.mark.parametrize("part", [*SETTINGS, "wandb"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_part_that_is_no_mapping_and_no_name_is_refused_with_field_and_line(part, shape, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"seed: 3\n{part}: {shape}\n")
    with (
        pytest.raises(
            ConfigError, match=rf"run\.yaml, line 2: {part} must be a .*mapping of fields such as {part}\."
        ) as e,
        inputs.lines_of(file),
    ):
        prepare.prepare(inputs.yaml_fields(file))
    assert e.value.field == part
    file.write_text(f"axes: {{targets: [core]}}\nbase:\n  seed: 3\n  {part}: {shape}\n")
    with pytest.raises(ConfigError, match=rf"run\.yaml, line 4: {part} must be a "):
        sweep_spec.read(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training:\n  lr: fast\n", r"line 2: training\.lr must be a number"),
        (
            "seed: 1\ntraining:\n  max_epoch: 3\n",
            r"line 3: No field named 'training\.max_epoch'\. Nearest: train",
        ),
        ("seed: 1\nseed: 2\n", r"seed is given twice .*line 2"),
        ("model: ast-mini\nmodel.variant: ast-base\n", r"line 2: model\.variant is given twice"),
        ("lora:\n  targets: [{a: b}]\n", r"line 2: lora\.targets: \{'a': 'b'\} is not a target"),
        ("lora: {targets: [{path: a.b, kind: Linear, shape: 5}]}\n", r"line 1: lora\.targets: .* is not a target"),
        ("data: {dataset: null}\n", r"line 1: data\.dataset must be text \(you entered None\)"),
    ],
)
def test_a_wrong_field_of_a_file_is_named_with_its_line(text, said, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said), inputs.lines_of(file):
        prepare.prepare(inputs.yaml_fields(file))


VALUES = (
    *("null", "~", "true", "0", "-1", "1e-3", "1.5", "''", "ast-mini", "micro", "attention", "none", "all-linear"),
    *("~root", "2024-01-01", "12:30:45", "1e999", ".nan", "[]", "{}", "[1, 2]", "[[q_proj, 4]]", "{q_proj: 4}"),
    *("{a: b}", "[{path: x}]", "!!set {a}", "!!int x", "!!binary aGk=", "'\u202e'", '"\\0"', "[null]", "xxxxxxxx"),
)
KEYS = [*SETTINGS, "wandb", "foo", "1", "null", "<<", "''", "target_modules", "lora.rank", "seed.x"]
KEYS += [name for name, _ in config.fields()]


def any_value(draw: random.Random, depth: int = 0) -> str:
    if depth < 2 and draw.random() < 0.35:
        keys = draw.sample([key.rpartition(".")[2] for key in KEYS], draw.randint(1, 3))
        return "{" + ", ".join(f"{key}: {any_value(draw, depth + 1)}" for key in keys) + "}"
    return draw.choice(VALUES)


def test_every_shape_of_file_ends_in_a_config_or_in_an_error_for_its_user(tmp_path):
    draw, file, ends = random.Random(14), tmp_path / "any.yaml", {True: 0, False: 0}
    for number in range(600):
        fields = {key: any_value(draw) for key in draw.sample(KEYS, draw.randint(1, 3))}
        lines = [f"{key}: {value}" for key, value in fields.items()]
        if number % 2:
            lines = [f"axes: {draw.choice(('{targets: [core]}', any_value(draw)))}", f"base: {{{', '.join(lines)}}}"]
        file.write_text("\n".join(lines))
        try:
            if number % 2:
                spec = sweep_spec.read(file)
                setting = next(iter(sweep_spec.combinations(spec.axes)))
                prepare.prepare(sweep_spec.draft(spec.base, setting, spec.sets))
            else:
                with inputs.lines_of(file):
                    prepare.prepare(inputs.yaml_fields(file))
            ends[True] += 1
        except UserError:
            ends[False] += 1
    assert min(ends.values()) > 10, "both ends are reached"


def test_only_a_regular_file_of_bounded_size_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text("#" * (inputs.MOST_YAML_BYTES + 1))
    for name, said in {
        "pipe": "not a regular file",
        "large": "larger than",
        "": "directory",
        "none": "No such",
    }.items():
        for read in (inputs.yaml_fields, sweep_spec.read):
            with pytest.raises(ConfigError, match=said):
                read(tmp_path / name)


# What is said later wins


def test_the_command_line_wins_over_a_file_also_where_it_says_zero(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "axes: {training.lr: {low: 1e-4, high: 1e-2}}\nname: rates\nsampler: random\ntrials: 2\nsampler_seed: 5\n"
        "seeds: [3]\nbase: {seed: 7, lora: {rank_pattern: {fc1: 4}}}\n"
    )

    def read(words=(), **options) -> sweep_spec.SweepSpec:
        none = {"data": None, "max_epochs": None, "ablate": None, "sampler": None, "trials": None, "name": None}
        lists = {"models": [], "targets": [], "axes": [], "seeds": []}
        return sweep_words.laid_over(file, words, **{**none, **lists, "sampler_seed": None, **options})

    assert (read().sampler_seed, read().name, read().seeds) == (5, "rates", (3,))
    found = read(["seed=0", "lora.rank_pattern={fc2: 4}"], sampler_seed=0, name="", seeds=[0])
    assert (found.sampler_seed, found.name, found.seeds) == (0, "", (0,))
    assert found.base == {"seed": 0, "lora": {"rank_pattern": {"fc2": 4}}}
    assert read(sampler="grid", axes=["training.lr=1e-3"]).trials is None
    with pytest.raises(ConfigError, match="trials must be at least 1"):
        read(trials=0)
    assert read(max_epochs=0).base["training"] == {"max_epochs": 0}
    with pytest.raises(ConfigError, match=r"training\.lr is an axis of this sweep and a shared setting"):
        read(["training.lr=1e-3"])


def test_new_targets_do_not_keep_the_name_of_the_set_before():
    before = {"lora": {"targets": ["fc1"], "target_set": "mine", "r": 4}}
    for words in (["lora=attention"], ["lora.targets=[q_proj, k_proj]"], ["lora=default"]):
        asked = grammar.parse(words)
        found = prepare.prepare(grammar.laid_over(before, asked)).config.lora
        assert found == prepare.prepare(grammar.laid_over({"lora": {"r": 4}}, asked)).config.lora
        assert found.target_set != "mine"


def test_a_preset_changes_a_run_whose_own_fields_say_otherwise():
    run = prepare.prepare(grammar.parse(["training.max_epochs=7", "lora.targets=[fc1]"])).config
    found = prepare.prepare(prepare.changed(run, ["training=quick", "lora=default"])).config
    assert found.training.max_epochs == 2 and found.lora == prepare.prepare({}).config.lora


# Ranks


@pytest.mark.parametrize(
    ("written", "first", "other", "note"),
    [
        (
            "{layers.0.attention.q_proj: 8, q_proj: 4}",
            8,
            4,
            "1 module matches both layers.0.attention.q_proj (8) and q_",
        ),
        ("{q_proj: 4, layers.0.attention.q_proj: 8}", 8, 4, "it is more specific"),
        ("{q_proj: 4, FULL: 8}", 8, 4, "it is more specific"),
        ("{FULL: 8, layers.0.attention.q_proj: 2, q_proj: 4, '.*q_proj': 6}", 8, 4, "it is more specific"),
        ("{'.*q_proj': 6, q_proj: 4}", 4, 4, "4 modules match both q_proj (4) and .*q_proj (6)"),
        ("{'.*q_proj': 6, '.*[qk]_proj': 3}", 6, 6, "The rank of .*q_proj is used: it comes first."),
        ("{'[qk]_proj': 3}", 3, 3, ""),
        ("{attention: 3, q_proj: 5}", 5, 5, "it is more specific"),
        ("[[q_proj, 4], [q_proj, 2]]", 4, 4, "it comes first"),
        ("{'.*q_proj': 4, q_proj: 4}", 4, 4, ""),
    ],
)
def test_the_most_specific_key_gives_a_module_its_rank_whatever_the_order(written, first, other, note):
    paths = targets.resolve_sets(targets.load_outline("ast-mini"), ["q_proj"]).paths
    words = ["lora=attention", f"lora.rank_pattern={written.replace('FULL', paths[0])}"]
    found = prepare.prepare(grammar.parse(words))
    assert [found.config.lora.ranks[path] for path in paths] == [first, *[other] * (len(paths) - 1)]
    assert any(note in said for said in found.notes) if note else not found.notes


def test_a_rank_that_is_given_twice_for_one_key_is_refused():
    with pytest.raises(ConfigError, match=r"lora\.rank_pattern"):
        grammar.parse(["lora.rank_pattern={q_proj: 4, q_proj: 8}"])
