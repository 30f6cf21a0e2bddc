"""The trainer with the real network: as the keeper starts it (`python -m sousa_engine.runs.trainer RUN_DIR`), and
the same `main` in this process, which spares the imports, where the process itself is not what is tried."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import bad_audio
import numpy as np
import pytest
import soundfile
import torch

from sousa_engine import backbones
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import PreflightError, RunError
from sousa_engine.core.records import UPDATE
from sousa_engine.data import manifest as manifests
from sousa_engine.data.features import feature_cache
from sousa_engine.runs import preflight, prepare, stages, trainer
from sousa_engine.training import adapters as loras
from sousa_engine.training.statistics import measure_statistics
from sousa_engine.workspace import PROJECT_ROOT, Workspace, run_files
from sousa_engine.workspace.spool import read_batch, read_predictions

pytestmark = pytest.mark.process
WEIGHTS = PROJECT_ROOT / "sousa_engine" / "backbones" / "weights" / "ast-mini" / "model.safetensors"


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def workspace(workspace, features) -> Workspace:
    """Its log-mel is that of all tests here: computing it takes longer than most of them train."""
    workspace.cache.mkdir(parents=True)
    (workspace.cache / "features").symlink_to(features)
    return workspace


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Two dozen of a second each, of two classes, for networks that would need long for the embedded set."""
    folder, random = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for split, clips in {"train": 8, "valid": 2, "test": 2}.items():
        for label, pitch_hz in {"flam": 200.0, "drag": 900.0}.items():
            (folder / split / label).mkdir(parents=True)
            for clip in range(clips):
                tone = 0.3 * np.sin(2 * np.pi * pitch_hz * np.arange(32_000) / 32_000)
                soundfile.write(folder / split / label / f"{clip}.wav", tone + random.normal(0, 0.1, 32_000), 32_000)
    return folder


Train = Callable[[Workspace, RunConfig], tuple[Path, subprocess.CompletedProcess[str]]]


def prepared(workspace: Workspace, settings: RunConfig) -> Path:
    folder = workspace.run_dir("20260101-aaaa")
    folder.mkdir(parents=True)
    run_files.write_json(folder / run_files.CONFIG, settings.model_dump(mode="json"))
    return folder


@pytest.fixture
def train(capfd) -> Iterator[Train]:
    before = signal.getsignal(signal.SIGTERM)

    def run_main(workspace: Workspace, settings: RunConfig) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = prepared(workspace, settings)
        code = trainer.main([str(folder)])
        return folder, subprocess.CompletedProcess([str(folder)], code, *capfd.readouterr())

    yield run_main
    signal.signal(signal.SIGTERM, before)


def draft(**more) -> RunConfig:
    values = {"data": {"dataset": "micro"}, "training": {"max_epochs": 1}, "device": "cpu", **more}
    return prepare.prepare(values).config


LORA = {"method": "adalora", "r": 2, "dropout": 0.1, "targets": ["attention"]}


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory, features) -> Path:
    """A run from its start to its end, in the process that the keeper would start. To be read or copied."""
    workspace = Workspace(root=tmp_path_factory.mktemp("never"))
    workspace.cache.mkdir(parents=True)
    (workspace.cache / "features").symlink_to(features)
    folder = prepared(workspace, draft(lora=LORA, training={"max_epochs": 2}))
    command = [sys.executable, "-m", "sousa_engine.runs.trainer", str(folder)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == run_files.EXIT_FINISHED, done.stderr
    return folder


def test_a_finished_run_leaves_what_the_preflight_promised(workspace, never_stopped):
    folder, settings = never_stopped, draft(lora=LORA, training={"max_epochs": 2})
    promised = preflight.preflight(settings, workspace)
    assert run_files.read_json(folder / run_files.RESULT)["outcome"] == "finished"

    batch = read_batch(folder / run_files.SPOOL, 0)
    facts = batch.facts
    assert facts["parameters"]["trainable"] == promised.counts.trainable
    assert facts["parameters"]["total"] == promised.counts.total
    assert facts["data"]["clips"] == dict(promised.clips)
    assert facts["weights_label"].startswith("pretrained: ast-mini (embedded), sha256 ")
    assert facts["device"] == "cpu" and {"torch", "transformers", "peft"} <= set(facts["versions"])
    steps = [point.step for point in batch.points if point.metric == "train/loss"]
    assert steps == list(range(1, promised.total_steps + 1))
    tests = {point.metric: point for point in batch.points if point.metric.startswith("test/")}
    assert tests["test/accuracy"].n == promised.clips["test"]
    moved = {p.metric.removeprefix(UPDATE): p for p in batch.points if p.metric.startswith(UPDATE)}
    assert set(moved) == {target.path for target in settings.lora.targets}
    assert all(p.value > 0 and p.step == facts["best_step"] for p in moved.values())

    predictions = read_predictions(folder / run_files.PREDICTIONS)
    of_test = [p for p in predictions if p.split == "test"]
    assert len(of_test) == promised.clips["test"]
    assert sum(p.label == p.predicted for p in of_test) / len(of_test) == pytest.approx(tests["test/accuracy"].value)
    labels = json.loads((folder / "adapter" / "labels.json").read_text())
    assert len(labels["classes"]) == promised.classes and labels["backbone"] == "ast-mini"


@pytest.mark.parametrize(
    ("variant", "lora", "heard"),
    [
        ("mn04_as", {"targets": ["se"], "rank_pattern": {"features.4.block.2.conc_se_layers.0.fc1": 2}}, 32000),
        ("mn10_as_fc", {"method": "adalora", "r": 4, "targets": ["se"]}, 32000),
        ("ast-mini", {"method": "pissa"}, 16000),
        ("ast-mini", {"method": "full"}, 16000),
    ],
)
def test_every_kind_of_training_runs_to_its_end_and_reads_back(workspace, train, recordings, variant, lora, heard):
    """What was trained, loaded onto a network built anew, answers test as the run did."""
    data = {"dataset": str(recordings)}
    settings = draft(data=data, model={"variant": variant, "weights": "random"}, lora=lora, seed=3)
    promised = preflight.preflight(settings, workspace)
    folder, done = train(workspace, settings)
    assert done.returncode == run_files.EXIT_FINISHED, done.stderr
    facts = read_batch(folder / run_files.SPOOL, 0).facts
    assert facts["parameters"]["trainable"] == promised.counts.trainable
    assert backbones.variant(variant).sample_rate_hz == heard
    assert ("BatchNorms measured on train clips" in done.stdout) == (variant != "ast-mini")

    manifest = manifests.open_dataset(settings.data)
    network = backbones.open_network(
        variant, num_classes=len(manifest.classes), weights="random", workspace=workspace, seed=settings.seed
    )
    cache = feature_cache(manifest, network.spec, workspace)
    rows = {split: [i for i, c in enumerate(manifest.clips) if c.split == split] for split in ("train", "test")}
    measure_statistics(network.module, cache.array, np.array(rows["train"]), batch_size=settings.training.batch_size)
    module = loras.load(network, folder / "adapter")
    with torch.no_grad():
        logits = module(features=torch.from_numpy(cache.array[rows["test"]].astype("float32")))
    answered = {p.clip_id: p for p in read_predictions(folder / run_files.PREDICTIONS) if p.split == "test"}
    for row, probabilities in zip(rows["test"], logits.softmax(-1), strict=True):
        said = answered[manifest.clips[row].clip_id]
        assert probabilities[manifest.classes.index(said.predicted)] == pytest.approx(said.probability, abs=1e-3)


def test_bad_files_are_left_out_and_named_and_the_rest_trains(workspace, train):
    drums = bad_audio.write_all(workspace.root / "drums")
    errors = {name for name, (level, _, _) in bad_audio.EXPECTED.items() if level == "error"}
    used = 2 * bad_audio.GOOD + len(bad_audio.EXPECTED) - len(errors)
    settings = draft(data={"dataset": str(drums)}, model={"weights": "random"})
    folder, done = train(workspace, settings)
    assert done.returncode == run_files.EXIT_FINISHED, done.stderr
    facts = read_batch(folder / run_files.SPOOL, 0).facts
    assert sum(facts["data"]["clips"].values()) == used and facts["data"]["classes"] == 2
    assert facts["data"]["left_out"] == len(errors)
    note = f"{len(errors)} of {used + len(errors)} files are left out: "
    assert any(text.startswith(note) for text in facts["data"]["notes"])
    assert [e.kind for e in read_batch(folder / run_files.SPOOL, 0).events][:2] == ["data", "data"]
    promised = preflight.preflight(settings, workspace)
    assert dict(promised.clips) == facts["data"]["clips"], "the scan of the run is known to every page from now on"


def test_strict_mode_refuses_before_the_first_step(workspace, train):
    drums = bad_audio.write_all(workspace.root / "drums")
    settings = draft(data={"dataset": str(drums), "strict": True}, model={"weights": "random"})
    folder, done = train(workspace, settings)
    assert done.returncode == run_files.EXIT_USER_ERROR
    result = run_files.read_json(folder / run_files.RESULT)
    assert result["outcome"] == "failed" and "data.strict=false" in result["reason"]
    assert "errors, and strict mode" in result["reason"] and not read_batch(folder / run_files.SPOOL, 0).points


def test_weights_that_were_cut_off_since_the_launch_are_a_sentence(workspace, train, tmp_path):
    copy = tmp_path / "cut.safetensors"
    copy.write_bytes(WEIGHTS.read_bytes())
    settings = draft(model={"weights": str(copy)})
    copy.write_bytes(WEIGHTS.read_bytes()[:100_000])
    folder, done = train(workspace, settings)
    assert done.returncode == run_files.EXIT_USER_ERROR
    result = run_files.read_json(folder / run_files.RESULT)
    assert result["outcome"] == "failed" and str(copy) in result["reason"] and "truncated" in result["reason"]
    assert "Traceback" not in done.stderr and result["reason"] in done.stderr


def test_a_full_disk_is_named_however_torch_wraps_it():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1411200 vs 1411092")
    except RuntimeError as error:
        assert trainer.known_cause(error, Path("/no/runs/folder")).startswith("The disk is full.")


def test_a_full_disk_is_named_where_torch_says_nothing_of_it(tmp_path, full_disk):
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1411200 vs 1411092")
    assert trainer.known_cause(error, tmp_path / "runs" / "a").startswith("The disk is full.")
    assert trainer.known_cause(KeyError("a bug"), tmp_path / "runs" / "a") == ""


def test_the_exit_code_tells_of_a_full_disk_where_no_result_finds_room(workspace, monkeypatch):
    def no_room(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = workspace.run_dir("260101-000000-aaaa")
    folder.mkdir(parents=True)
    run_files.write_json(folder / run_files.CONFIG, RunConfig().model_dump(mode="json"))
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(trainer, "run", no_room)
    monkeypatch.setattr(run_files, "write_json", no_room)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=no_room, flush=no_room))  # the log is on the same disk
    try:
        assert trainer.main([str(folder)]) == run_files.EXIT_DISK_FULL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_memory_that_ran_out_is_named_by_the_type_of_its_error(tmp_path):
    text = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
    said = trainer.known_cause(torch.OutOfMemoryError(text), tmp_path)
    assert said.startswith("The GPU ran out of memory while allocating 20.00 GiB. Lower training.batch_size")
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.1 GB)"),
    ):
        assert trainer.known_cause(error, tmp_path).startswith("This machine ran out of memory.")
    for text in (
        "CUDA error: out of memory\nCUDA kernel errors might be",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when",
    ):
        assert trainer.known_cause(RuntimeError(text), tmp_path).startswith("The GPU has no free memory")
    assert trainer.known_cause(RuntimeError("an index out of memory bounds"), tmp_path) == ""


def test_a_workspace_that_cannot_be_used_is_one_line_as_reason(workspace, train):
    settings = draft()
    (workspace.cache / "features").unlink()
    (workspace.cache / "features").write_text("a file where a folder is needed")
    folder, done = train(workspace, settings)
    result = run_files.read_json(folder / run_files.RESULT)
    assert result["outcome"] == "failed" and "features" in result["reason"] and "\n" not in result["reason"]
    assert done.returncode != 0


# Going on


def in_process(folder: Path, settings: RunConfig, *, stop_at: int | None = None) -> None:
    """One launch of the trainer without a process of its own; stop_at: the step at which it is asked to stop."""
    folder.mkdir(parents=True, exist_ok=True)
    run_files.write_json(folder / run_files.CONFIG, settings.model_dump(mode="json"))
    trainer.run(folder, settings, stop=lambda: stop_at is not None and last_step(folder) >= stop_at)


def last_step(folder: Path) -> int:
    steps = [p.step for p in read_batch(folder / run_files.SPOOL, 0).points if p.metric == "train/loss"]
    return steps[-1] if steps else 0


def measured(folder: Path) -> dict[tuple[str, int], float]:
    """As the store keeps them: the last value of a step counts. Without what a stop alone measures."""
    found = {(p.metric, p.step): p.value for p in read_batch(folder / run_files.SPOOL, 0).points}
    ends = {step for metric, step in found if metric == "valid/loss"}
    return {key: v for key, v in found.items() if not key[0].startswith(UPDATE) or key[1] in ends}


def test_a_run_killed_and_stopped_and_resumed_equals_one_never_stopped(workspace, never_stopped):
    settings = draft(lora=LORA, training={"max_epochs": 2})
    folder = prepared(workspace, settings)
    command = [sys.executable, "-m", "sousa_engine.runs.trainer", str(folder)]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL)
    per_epoch = max(step for _, step in measured(never_stopped)) // 2
    while last_step(folder) <= per_epoch:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    in_process(folder, settings, stop_at=per_epoch + 2)
    assert not any(metric.startswith("test/") for metric, _ in measured(folder))
    in_process(folder, settings)
    assert measured(folder) == measured(never_stopped)
    assert read_predictions(folder / run_files.PREDICTIONS) == read_predictions(never_stopped / run_files.PREDICTIONS)
    kinds = [event.kind for event in read_batch(folder / run_files.SPOOL, 0).events]
    assert kinds.count("continued") == 2 and "environment changed" not in kinds


@pytest.mark.parametrize(
    ("variant", "lora"),
    [
        ("efficientat-mini", {"method": "full"}),  # BatchNorm's statistics
        ("htsat-mini", {"method": "loraplus", "dropout": 0.1}),  # drop path
        ("beats-mini", {"dropout": 0.1}),
    ],
)
def test_every_family_goes_on_bit_for_bit(workspace, recordings, variant, lora):
    training = {"max_epochs": 1, "batch_size": 4}
    settings = draft(data={"dataset": str(recordings)}, model={"variant": variant}, lora=lora, training=training)
    never, often = (workspace.run_dir(name) for name in ("20260101-aaaa", "20260101-bbbb"))
    in_process(never, settings)
    in_process(often, settings, stop_at=2)
    assert last_step(often) == 2 < last_step(never)
    in_process(often, settings)
    assert measured(often) == measured(never)
    adapters = [next((folder / "adapter").glob("*.safetensors")).read_bytes() for folder in (never, often)]
    assert adapters[0] == adapters[1]


def test_a_stop_before_it_goes_on_does_not_say_that_it_never_trained(workspace, never_stopped, monkeypatch):
    folder = workspace.run_dir("20260101-aaaa")
    shutil.copytree(never_stopped, folder)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(trainer, "run", lambda *words, **more: None)
    try:
        assert trainer.main([str(folder)]) == run_files.EXIT_STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "its last checkpoint is unchanged" in run_files.read_json(folder / run_files.RESULT)["reason"]


def test_data_that_changed_since_forbid_to_go_on_and_versions_only_warn(workspace, never_stopped, monkeypatch):
    folder = workspace.run_dir("20260101-aaaa")
    shutil.copytree(never_stopped, folder)
    settings = draft(lora=LORA, training={"max_epochs": 2})
    monkeypatch.setattr(stages, "versions", lambda: {"torch": "0.1"})
    in_process(folder, settings)
    (told,) = [e.message for e in read_batch(folder / run_files.SPOOL, 0).events if e.kind == "environment changed"]
    assert "torch" in told and "0.1 now" in told
    usual = manifests.contents
    monkeypatch.setattr(manifests, "contents", lambda found: usual(found) | {"all": "another"})
    with pytest.raises(PreflightError, match=r"data set has changed.*new run"):
        in_process(folder, settings)


def test_a_run_that_measured_and_has_no_checkpoint_does_not_begin_anew(workspace, never_stopped):
    folder = workspace.run_dir("20260101-aaaa")
    shutil.copytree(never_stopped, folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(RunError, match="no checkpoint"):
        in_process(folder, draft(lora=LORA, training={"max_epochs": 2}))
