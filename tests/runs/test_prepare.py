"""One backbone has one meaning: whichever name it is given, and whichever way, a run gets the same config."""

from __future__ import annotations

import pytest

from sousa_engine import backbones
from sousa_engine.core import config, grammar, inputs, sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import UnknownNameError
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
