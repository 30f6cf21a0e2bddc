"""From a draft to a queued run: names become modules, what cannot work is refused before it starts."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil

import bad_audio
import numpy as np
import pytest
import soundfile
import yaml

from sousa_engine import backbones, targets
from sousa_engine.core import grammar
from sousa_engine.core.errors import ConfigError, PreflightError, TargetError, UnknownNameError
from sousa_engine.core.records import RunStatus
from sousa_engine.data import manifest
from sousa_engine.data.dataset import DataSet
from sousa_engine.runs import ensure, orders, preflight, prepare
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.training import checkpoint
from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint


def prepared(*words: str) -> prepare.Prepared:
    return prepare.prepare(grammar.parse(["data=micro", *words]))


def errors(workspace, *words: str) -> str:
    return " ".join(check.detail for check in preflight.preflight(prepared(*words).config, workspace).errors)


def test_the_default_adapts_every_attention_and_mlp_linear():
    found = prepared()
    roles = {found.outline.node(target.path).role.split(".")[0] for target in found.config.lora.targets}
    assert roles == {"attention", "mlp"}
    assert len(found.config.lora.targets) == 4 * 6


def test_old_names_resolve_and_say_what_they_became():
    found = prepared("model=ast-base", "peft_target_modules=[query, key, value, output.dense]")
    assert len(found.config.lora.targets) == 60
    assert any("q_proj" in note for note in found.notes)


def test_a_target_that_matches_nothing_is_refused_with_the_nearest():
    with pytest.raises(TargetError, match=r"fc3.*fc2"):
        prepared("lora.targets=[q_proj, fc3]")


def test_the_head_is_left_to_its_policy():
    found = prepared("lora.targets=[all-linear, dense]", "lora.head=lora")
    assert not any(found.outline.in_head(t.path) for t in found.config.lora.targets)
    assert any("lora.head=lora" in note for note in found.notes)


def test_golden_count_of_the_reference_run(workspace):
    found = preflight.preflight(
        prepared("model=ast-base", "model.weights=random", "lora=all-linear", "lora.head=lora").config, workspace
    )
    assert (found.counts.total, found.counts.trainable, found.counts.layers) == (86_219_560, 1_333_568, 73)


def test_an_unknown_backbone_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="ast-mini"):
        prepared("model=ast-mni")


def test_rank_above_a_module_s_width_names_the_module():
    with pytest.raises(ConfigError, match=r"lora\.r = 900 is above the width of .*q_proj"):
        prepared("lora.r=900", "lora.targets=[q_proj]")


@pytest.mark.parametrize(("word", "field"), [("lora.r=0", "lora.r"), ("training.lr=-1", "training.lr")])
def test_values_out_of_bounds_name_their_field(word, field):
    with pytest.raises(ConfigError) as caught:
        prepared(word)
    assert caught.value.field == field and field in str(caught.value)


def test_a_target_of_an_earlier_run_must_still_be_what_it_was():
    draft = prepared("lora.targets=[q_proj]").config.model_dump(mode="json")
    assert prepare.prepare(draft).config.lora == prepared("lora.targets=[q_proj]").config.lora
    draft["lora"]["targets"][0]["shape"] = [5, 5]
    with pytest.raises(TargetError, match="Select it again"):
        prepare.prepare(draft)


@pytest.mark.parametrize(
    "words",
    [
        ["seed=3", "training.lr=5e-4", "name=it's my run"],
        ["lora=attention", "lora.r=4"],
        ["lora=probe", "data.clip_s=2.5"],
        ["model=ast-base", "model.weights=random", "lora.targets=[fc1]"],
        ["lora.targets=[layers.0.attention.q_proj, layers.1.mlp.fc2]", "augment=none"],
    ],
)
def test_command_and_yaml_give_the_same_run_again(words):
    wanted = prepared(*words).config
    command = shlex.split(prepare.to_command(wanted))
    assert command[:4] == ["python", "-m", "sousa_engine", "train"]
    assert prepare.prepare(grammar.parse(command[4:])).config == wanted
    assert prepare.prepare(yaml.safe_load(prepare.to_yaml(wanted))).config == wanted


def test_preflight_counts_clips_steps_and_the_majority_baseline(workspace):
    found = preflight.preflight(prepared("training.batch_size=16", "training.max_epochs=3").config, workspace)
    assert found.classes == 40
    assert found.steps_per_epoch == -(-found.clips["train"] // 16)
    assert found.total_steps == 3 * found.steps_per_epoch
    assert 0 < found.majority <= 0.1
    assert not found.errors


def test_weights_that_are_not_here_are_an_error_with_ways_out(workspace, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = errors(workspace, "model=ast-base")
    assert "ast-mini" in text and "model.weights=random" in text


def test_random_weights_are_labelled(workspace):
    found = preflight.preflight(prepared("model.weights=random").config, workspace)
    assert any("control" in check.detail for check in found.checks if check.level == "warning")


def test_the_preflight_tells_facts_from_what_is_to_be_weighed(workspace, tmp_path):
    for i, seconds in enumerate([1.0] * 6 + [0.8, 1.4]):
        for label in ("tap", "roll"):
            path = tmp_path / "drums" / label / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([i, label == "tap"]).normal(0, 0.1, round(seconds * 8000))
            soundfile.write(path, noise, 8000 if i else 16000)
    (tmp_path / "drums" / "empty").mkdir()
    drums = f"data={tmp_path / 'drums'}"
    found = preflight.preflight(prepared(drums, "data.clip_s=1.0", "lora=probe").config, workspace).checks

    def said(level: str) -> str:
        return "\n".join(check.detail for check in found if check.level == level)

    for fact in ("split made here", "are longer than", "are shorter than", "Sample rates differ", "a linear probe",
                 "have not been scanned"):  # fmt: skip
        assert fact in said("note") and fact not in said("warning")
    assert "The folder empty holds no audio." in said("warning") and "holds no audio" not in said("note")
    assert not said("error")


def test_players_who_are_heard_again_are_to_be_weighed(workspace, tmp_path):
    rows = ["path,label,player,split"]
    for i, split in enumerate(["train", "train", "valid", "test"]):
        for label in ("tap", "roll"):
            noise = np.random.default_rng([i, label == "tap"]).normal(0, 0.1, 8000)
            soundfile.write(tmp_path / f"{label}{i}.wav", noise, 8000)
            rows.append(f"{label}{i}.wav,{label},anna,{split}")
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    found = preflight.preflight(prepared(f"data={tmp_path / 'clips.csv'}").config, workspace)
    assert any(
        "in train and also in valid or test" in check.detail for check in found.checks if check.level == "warning"
    )
    assert not any("in train and also" in check.detail for check in found.checks if check.level == "note")


def test_nothing_to_train_is_refused(workspace):
    assert "Nothing would train" in errors(workspace, "lora=probe", "lora.head=freeze")


def test_a_device_that_is_not_here_is_refused_naming_those_that_are(workspace):
    assert "cpu" in errors(workspace, "device=cuda:7")


def test_wandb_without_the_package_gets_a_sentence(workspace, monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    assert "pip install wandb" in errors(workspace, "wandb.mode=offline")


def test_start_queues_the_run_and_calls_the_supervisor(workspace, monkeypatch):
    called = []
    monkeypatch.setattr(ensure, "ensure", called.append)
    run = orders.start(workspace, prepared("seed=5").config, created_by="cli")
    with Store.open(workspace) as store:
        stored = store.runs.get(run.id)
    assert stored.status is RunStatus.QUEUED and stored.config.seed == 5
    assert called == [workspace]


def test_start_refuses_what_preflight_refuses(workspace, monkeypatch):
    monkeypatch.setattr(ensure, "ensure", lambda workspace: pytest.fail("must not start"))
    with pytest.raises(PreflightError, match="cuda:7"):
        orders.start(workspace, prepared("device=cuda:7").config, created_by="cli")


def test_recommended_sets_exist_for_every_variant():
    for name in backbones.VARIANTS:
        sets = targets.recommended_sets(targets.load_outline(name))
        assert targets.default_set(targets.load_outline(name)) in sets and all(sets.values())


def test_relative_paths_are_stored_as_the_place_they_mean(tmp_path, monkeypatch):
    (tmp_path / "drums").mkdir()
    (tmp_path / "w.pth").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    found = prepare.prepare(grammar.parse(["data=drums", "model.weights=w.pth"])).config
    assert found.data.dataset == str(tmp_path / "drums") and found.model.weights == str(tmp_path / "w.pth")


def test_the_legacy_preset_says_which_modules_its_names_became():
    found = prepared("model=ast_fixed")
    lora = found.config.lora
    assert (found.config.model.variant, lora.r, len(lora.targets)) == ("ast-base", 16, 60)
    assert all("Old name, now " in note for note in found.notes) and len(found.notes) == 4
    counts = targets.count(found.outline, [t.path for t in lora.targets], r=16, head="freeze", num_classes=40)
    assert counts.adapter_parameters == 1_916_928


@pytest.mark.parametrize(
    ("preset", "variant", "layers", "old", "parameters"),
    [
        ("htsat_fixed", "htsat-audioset", 48, 3, 1_130_496),
        ("beats_fixed", "beats-iter3-plus", 72, 6, 2_654_208),
        ("efficientat_fixed", "mn10_as", 46, 0, 376_832),
    ],
)
def test_the_other_families_have_a_legacy_preset_too(preset, variant, layers, old, parameters):
    found = prepared(f"model={preset}")
    lora = found.config.lora
    assert (found.config.model.variant, lora.r, len(lora.targets)) == (variant, 16, layers)
    assert sum("Old name, now " in note for note in found.notes) == old
    counts = targets.count(found.outline, [t.path for t in lora.targets], r=16, head="freeze", num_classes=40)
    assert counts.adapter_parameters == parameters


@pytest.mark.parametrize(
    ("variant", "entries", "layers", "parameters"),
    [
        ("htsat", "[qkv, attn.proj]", 24, 423_936),
        ("htsat", "[qkv, attn.proj, fc1, fc2, reduction]", 51, 1_195_008),
        ("efficientat", "se", 16, 162_560),
        ("efficientat", "se+pointwise", 46, 376_832),
        ("beats", "[q_proj, k_proj, v_proj, out_proj, fc1, fc2]", 72, 2_654_208),
        ("ast", "attention", 48, 1_179_648),
    ],
)
def test_golden_counts_of_every_family(variant, entries, layers, parameters):
    found = prepared(f"model={variant}", f"lora.targets={entries}", "lora.r=16")
    paths = [target.path for target in found.config.lora.targets]
    counts = targets.count(found.outline, paths, r=16, head="freeze", num_classes=40)
    assert (counts.layers, counts.adapter_parameters) == (layers, parameters)


def test_a_rank_of_its_own_is_named_like_a_target_and_survives_yaml_and_command():
    found = prepared("lora=attention", "lora.rank_pattern={layers.0.attention.q_proj: 2, o_proj: 5}").config
    ranks = found.lora.ranks
    assert sorted(ranks.values()) == [2, 5, 5, 5, 5] and all(path.startswith("audio_") for path in ranks)
    assert prepare.prepare(yaml.safe_load(prepare.to_yaml(found))).config == found
    words = shlex.split(prepare.to_command(found))[4:]
    assert prepare.prepare(grammar.parse(words)).config == found
    with pytest.raises(TargetError, match="fc1 is a module of ast-mini, but not a target"):
        prepared("lora=attention", "lora.rank_pattern={fc1: 2}")
    with pytest.raises(TargetError, match="'q_prj' is not a module"):
        prepared("lora=attention", "lora.rank_pattern={q_prj: 2}")


def test_a_set_leaves_out_what_the_method_cannot_adapt_and_says_so():
    found = prepared("model=mn10_as", "lora.method=pissa", "lora.targets=se+pointwise")
    assert len(found.config.lora.targets) == 16
    assert any("30 of its 46 modules are skipped. PiSSA adapts Linear only" in note for note in found.notes)
    with pytest.raises(ConfigError, match="PiSSA adapts Linear only, not Conv2d"):
        prepared("model=mn10_as", "lora.method=pissa", "lora.targets=[features.16.0]")


def test_comparisons_take_no_targets(workspace):
    for method, trainable in (("full", 2_583_400), ("bitfit", None)):
        found = prepared(f"lora.method={method}")
        assert found.config.lora.targets == ()
        counts = preflight.preflight(found.config, workspace).counts
        assert counts.trainable == (trainable or counts.trainable) and counts.layers == 0
        with pytest.raises(ConfigError, match=r"leave lora\.targets empty"):
            prepared(f"lora.method={method}", "lora=attention")


def test_a_head_that_the_method_cannot_adapt_is_an_error_before_the_start(workspace):
    words = ("model=htsat", "model.weights=random", "lora.method=pissa", "lora.head=lora", "lora.targets=[qkv]")
    assert "PiSSA adapts Linear only, not Conv2d" in errors(workspace, *words)


@pytest.mark.parametrize("written", ["q_proj=4", "[1]", "7", "[[q_proj]]"])
def test_ranks_that_are_no_pairs_are_refused_with_how_to_write_them(written):
    with pytest.raises(ConfigError, match=r"does not map modules to ranks\. Example: '\{q_proj: 4"):
        prepare.prepare(grammar.parse([f"lora.rank_pattern={written}"]))


# Going on with a run


@pytest.fixture
def stopped(workspace, monkeypatch):
    """A run that was stopped at step 12, with two checkpoints as a training leaves them; no supervisor starts."""
    monkeypatch.setattr(ensure, "ensure", lambda workspace: None)
    settings = prepare.prepare({"data": {"dataset": "micro"}, "device": "cpu"}).config
    return stop(workspace, settings, {"contents": manifest.contents(manifest.open_dataset(settings.data))})


def stop(workspace, settings, facts) -> str:
    """The id of such a run. facts: of its data, as its checkpoints keep them."""
    with Store.open(workspace) as store:
        run = store.runs.enqueue(settings)
        Ledger(store).claim("cpu", "n1")
        Ledger(store).finish(run.id, RunStatus.STOPPED, "Stopped at step 12.", nonce="n1")
    folder = workspace.run_dir(run.id)
    checkpoint.save(folder / "best", 10, {}, {})
    for step in (10, 12):
        told = {"epoch": 1, "best": "step-00000010", "run": facts}
        checkpoint.save(folder / "checkpoints", step, {"step": step}, told)
    return run.id


def test_a_stopped_run_is_queued_again_and_says_from_where(workspace, stopped):
    run, found = orders.resume(workspace, stopped)
    assert (run.id, run.status, found.step, found.epoch, found.note) == (stopped, RunStatus.QUEUED, 12, 1, "")
    with Store.open(workspace) as store:
        assert store.runs.events(stopped)[-1].message == "Continues from step 12, epoch 1."
        with pytest.raises(PreflightError, match="only ended runs"):
            orders.resume(workspace, stopped)


def test_a_run_whose_scan_left_out_a_file_can_be_resumed(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(ensure, "ensure", lambda workspace: None)
    for seed, name in enumerate(f"drums/{label}/{i}.wav" for label in ("tap", "roll") for i in range(6)):
        bad_audio.write(tmp_path / name, seed)
    damaged = tmp_path / "drums" / "tap" / "0.wav"
    damaged.write_bytes(damaged.read_bytes()[:20_000])  # only decoding shows that it is truncated
    settings = prepare.prepare({"data": {"dataset": str(tmp_path / "drums")}, "model": {"weights": "random"}}).config
    data = DataSet.scan(settings.data, workspace)
    facts = {"contents": manifest.contents(data.manifest)}
    run, found = orders.resume(workspace, stop(workspace, settings, facts))
    assert (run.status, found.step, found.note) == (RunStatus.QUEUED, 12, "") and len(data.manifest.clips) == 11


def test_a_checkpoint_from_before_contents_were_kept_resumes_or_is_refused_in_words(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(ensure, "ensure", lambda workspace: None)
    for seed, name in enumerate(f"drums/{label}/{i}.wav" for label in ("tap", "roll") for i in range(6)):
        bad_audio.write(tmp_path / name, seed)
    settings = prepare.prepare({"data": {"dataset": str(tmp_path / "drums")}, "model": {"weights": "random"}}).config
    data = DataSet.open(settings.data, workspace)
    run_id = stop(workspace, settings, {"data": manifest.fingerprint_of_files(data.manifest)})
    with Store.open(workspace) as store:
        run = store.runs.get(run_id)
        assert "the run scans it first" in orders.resumable(run, store, thorough=True).note
        DataSet.scan(settings.data, workspace)
        assert orders.resumable(run, store, thorough=True).why_not == ""
        os.utime(tmp_path / "drums" / "tap" / "0.wav", ns=(1, 1))
        DataSet.scan(settings.data, workspace)
        said = orders.resumable(run, store, thorough=True).why_not
    assert "The checkpoint is from an earlier version, which kept only their names, sizes and times." in said


def test_files_that_only_have_another_time_are_resumed_and_other_sounds_are_refused_by_split(
    workspace, tmp_path, monkeypatch
):
    monkeypatch.setattr(ensure, "ensure", lambda workspace: None)
    for seed, name in enumerate(f"drums/{label}/{i}.wav" for label in ("tap", "roll") for i in range(6)):
        bad_audio.write(tmp_path / name, seed)
    settings = prepare.prepare({"data": {"dataset": str(tmp_path / "drums")}, "model": {"weights": "random"}}).config
    data = DataSet.scan(settings.data, workspace).manifest
    run_id = stop(workspace, settings, {"contents": manifest.contents(data)})
    clip = next(clip for clip in data.clips if clip.split == "valid")
    with Store.open(workspace) as store:
        run = store.runs.get(run_id)
        os.utime(clip.source, ns=(1, 1))
        DataSet.scan(settings.data, workspace)
        assert orders.resumable(run, store, thorough=True).why_not == ""
        bad_audio.write(clip.source, 99)
        DataSet.scan(settings.data, workspace)
        said = orders.resumable(run, store, thorough=True).why_not
    assert "The data set has changed since then: the valid split differs (2 clips, then 2)." in said


def test_a_damaged_newest_checkpoint_is_told_before_the_run_is_queued(workspace, stopped):
    state = workspace.run_dir(stopped) / "checkpoints" / "step-00000012" / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:-1] + b"?")  # of the same size: only reading it all tells
    with Store.open(workspace) as store:
        assert orders.resumable(store.runs.get(stopped), store).step == 12
    _, found = orders.resume(workspace, stopped)
    assert found.step == 10 and "step-00000012 is damaged" in found.note


def test_a_newest_checkpoint_without_a_seal_that_alone_names_another_data_set_is_damaged(workspace, stopped):
    """Checkpoints of earlier versions have no checksum of their facts, where one bit can flip."""

    def rewrite(step: int, change):
        file = workspace.run_dir(stopped) / "checkpoints" / f"step-{step:08d}" / checkpoint.FACTS
        facts = json.loads(file.read_text())
        facts.pop("facts_sha256", None)
        change(facts["run"]["contents"])
        file.write_text(json.dumps(facts))

    rewrite(10, lambda contents: None)
    rewrite(12, lambda contents: contents.update(all="0" * 32))
    with Store.open(workspace) as store:
        found = orders.resumable(store.runs.get(stopped), store, thorough=True)
        assert found.step == 10 and "step-00000012 is damaged" in found.note
        rewrite(10, lambda contents: contents.update(all="0" * 32))
        assert "data set has changed" in orders.resumable(store.runs.get(stopped), store, thorough=True).why_not


def test_what_cannot_go_on_is_refused_with_a_sentence_and_stays_as_it_is(workspace, stopped, monkeypatch):
    with pytest.raises(UnknownNameError):
        orders.resume(workspace, "nope")
    usual = manifest.contents
    monkeypatch.setattr(manifest, "contents", lambda found: usual(found) | {"all": "another"})
    with pytest.raises(PreflightError, match="data set has changed since then"):
        orders.resume(workspace, stopped)
    shutil.rmtree(workspace.run_dir(stopped))
    with pytest.raises(PreflightError, match=r"no checkpoint.*Launch a new run"):
        orders.resume(workspace, stopped)
    with Store.open(workspace) as store:
        assert store.runs.get(stopped).status is RunStatus.STOPPED
        other = store.runs.enqueue(store.runs.get(stopped).config)
        Ledger(store).claim("cpu", "n2")
        Ledger(store).finish(other.id, RunStatus.FINISHED, None, nonce="n2")
    with pytest.raises(PreflightError, match="more epochs"):
        orders.resume(workspace, other.id)


def test_a_run_that_diverged_is_resumed_with_a_warning(workspace, stopped):
    with Store.open(workspace) as store:
        run = store.runs.enqueue(store.runs.get(stopped).config)
        Ledger(store).claim("cpu", "n2")
        point = SpoolPoint("train/loss", 13, math.nan, 1, None, 0)
        Ledger(store).ingest(run.id, SpoolBatch(start=0, end=1, points=[point]))
        Ledger(store).finish(run.id, RunStatus.FAILED, "The loss became nan at step 13.", nonce="n2")
        shutil.copytree(workspace.run_dir(stopped), workspace.run_dir(run.id))
        assert "became NaN or infinite at step 13 and will" in orders.resumable(store.runs.get(run.id), store).note


def test_clips_too_short_for_the_backbone_are_told_before_the_start(tmp_path, workspace):
    import soundfile

    for label in ("tap", "roll"):
        (tmp_path / "drums" / label).mkdir(parents=True)
        for number in range(6):
            sound = np.random.default_rng(number).normal(0, 0.1, 8_000)
            soundfile.write(tmp_path / "drums" / label / f"{number}.wav", sound, 16_000)
    data = {"dataset": str(tmp_path / "drums")}
    for model, more, refused in (
        ("ast-mini", {}, False),  # padded to 1 s, which every backbone takes
        ("ast-mini", {"clip_s": 0.5}, True),
        ("ast-mini", {"clip_s": 0.7}, False),
        ("beats-mini", {"clip_s": 0.5}, False),
    ):
        settings = prepare.prepare({"model": {"variant": model}, "data": data | more}).config
        errors = [check.detail for check in preflight.preflight(settings, workspace).errors]
        assert bool(errors) is refused, errors
        if refused:
            assert "A clip of 0.5 s is too short" in errors[0] and "Set data.clip_s=0.7" in errors[0]
            with pytest.raises(PreflightError, match="too short"):
                orders.start(workspace, settings, created_by="test")
