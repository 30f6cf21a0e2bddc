"""The loop on a network small enough to see through: it learns, stops, keeps the best, and fails honestly."""

from __future__ import annotations

import errno
import itertools
import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from sousa_engine.core.config import AugmentConfig, TrainingConfig
from sousa_engine.core.errors import RunError
from sousa_engine.core.records import UPDATE
from sousa_engine.training import adapters, checkpoint, loop, precision
from sousa_engine.training.adapters import PeftConfig, get_peft_model
from sousa_engine.training.evaluate import evaluate, macro_f1

FRAMES, MELS, CLASSES = 12, 8, 3


class Recorder:
    def __init__(self):
        self.points, self.progresses, self.events = [], [], []

    def metrics(self, step, values, *, epoch=None, n=None):
        self.points += [(name, step, value, n) for name, value in values.items()]

    def progress(self, progress):
        self.progresses.append(progress)

    def event(self, kind, message):
        self.events.append((kind, message))

    def sync(self):
        pass

    def curve(self, name):
        return [value for metric, _, value, _ in self.points if metric == name]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(MELS, CLASSES)

    def forward(self, features):
        return self.classifier(features.mean(1))


def clips(n=60, seed=0) -> loop.TrainingData:
    """Clips whose class is the mel bin that is loudest."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    features = generator.normal(size=(n, FRAMES, MELS)).astype(np.float16)
    features[np.arange(n), :, labels] += 1.5
    part = np.arange(n)
    splits = {"train": part[: n // 2], "valid": part[n // 2 : 3 * n // 4], "test": part[3 * n // 4 :]}
    return loop.TrainingData(features=features, labels=labels, splits=splits, floor=-10.0)


def run(folder, *, stop=lambda: False, seed=0, lr=0.05, data=None, make=Network, **training):
    torch.manual_seed(seed)
    network, recorder = make(), Recorder()
    setup = loop.Setup(
        module=network,
        forward=lambda module, features: module(features),
        groups=[{"params": [p for p in network.parameters() if p.requires_grad], "lr": lr}],
        data=data or clips(),
        training=TrainingConfig(**{"max_epochs": 4, "batch_size": 8, **training}),
        augment=AugmentConfig(shift=0, gain_db=0, time_mask=0, mel_mask=0),
        seed=seed,
        accelerator=Accelerator(cpu=True),
        folder=folder,
        reporter=recorder,
        stop=stop,
    )
    return loop.train(setup), recorder, network


def test_training_learns_and_measures_test_once(tmp_path):
    outcome, recorder, _ = run(tmp_path, max_epochs=8)
    assert recorder.curve("train/loss")[-1] < recorder.curve("train/loss")[0]
    assert outcome.test.accuracy > 0.8
    assert recorder.curve("test/accuracy") == [outcome.test.accuracy]
    assert [n for name, *_, n in recorder.points if name == "test/accuracy"] == [15]


def test_the_same_seed_gives_the_same_metrics(tmp_path):
    _, first, _ = run(tmp_path / "a")
    _, second, _ = run(tmp_path / "b")
    _, other, _ = run(tmp_path / "c", seed=1)
    assert first.points == second.points
    assert first.points != other.points


def test_test_is_measured_on_the_best_checkpoint(tmp_path):
    # A rate so high that later epochs are no better by chance alone: whatever the best was, it is what remains.
    outcome, recorder, network = run(tmp_path, lr=3.0, max_epochs=6)
    accuracies = recorder.curve("valid/accuracy")
    assert outcome.best_accuracy == max(accuracies)
    kept, facts = checkpoint.load(checkpoint.steps(tmp_path / "best")[0])
    assert facts["valid_accuracy"] == max(accuracies)
    assert torch.equal(kept["trainable"]["classifier.weight"], network.classifier.weight.detach())


def test_stop_saves_a_checkpoint_at_the_very_step_and_measures_no_test(tmp_path):
    calls = iter(range(1, 1000))
    outcome, recorder, network = run(tmp_path, stop=lambda: next(calls) >= 3)
    assert outcome.stopped and outcome.step == 3 and outcome.test is None
    state, facts = checkpoint.load(checkpoint.steps(tmp_path / "checkpoints")[-1])
    assert facts["step"] == 3 and facts["stopped"]
    assert torch.equal(state["trainable"]["classifier.weight"], network.classifier.weight.detach())
    assert len(recorder.curve("train/loss")) == 3


def adapted():
    """The network with LoRA on a layer in front of its head."""

    class Deeper(Network):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(MELS, MELS)

        def forward(self, features):
            return self.classifier(self.body(features).mean(1))

    return get_peft_model(Deeper(), PeftConfig(target_modules=["body"], modules_to_save=["classifier"], r=2))


def test_every_epoch_tells_how_far_each_target_was_moved(tmp_path):
    outcome, recorder, network = run(tmp_path, make=adapted)
    told = {step: value for name, step, value, _ in recorder.points if name == "update/body"}
    assert list(told) == [4, 8, 12, 16] and all(value > 0 for value in told.values())
    assert adapters.update_norms(network) == {"body": told[outcome.best_step]}  # of the adapter that is kept
    assert {name for name, *_ in recorder.points if name.startswith(UPDATE)} == {"update/body"}


def test_a_stop_tells_how_far_each_target_was_moved_by_then(tmp_path):
    calls = iter(range(1, 1000))
    outcome, recorder, network = run(tmp_path, make=adapted, stop=lambda: next(calls) >= 3)
    (told,) = [(step, value) for name, step, value, _ in recorder.points if name == "update/body"]
    assert told == (outcome.step, adapters.update_norms(network)["body"]) and outcome.step == 3


def test_without_adapters_nothing_is_said_of_targets(tmp_path):
    _, recorder, _ = run(tmp_path, max_epochs=1)
    assert not [name for name, *_ in recorder.points if name.startswith(UPDATE)]


def test_a_loss_that_is_no_number_fails_with_its_step_and_the_cure(tmp_path):
    data = clips()
    data.features[:] = np.nan
    with pytest.raises(RunError, match=r"NaN at step 1.*training\.lr"):
        run(tmp_path, data=data)


def test_a_last_step_that_ruins_the_network_is_told_by_the_valid_loss(tmp_path):
    data = clips()
    data.features[data.splits["valid"]] = np.nan
    with pytest.raises(RunError, match=r"valid loss became NaN at step 4.*training\.lr"):
        run(tmp_path, data=data, max_epochs=1)


def test_early_stop_waits_its_patience(tmp_path):
    outcome, recorder, _ = run(tmp_path, lr=1e-12, max_epochs=50, patience=2)
    assert outcome.epochs < 50
    assert recorder.events[-1][0] == "early stop"


def test_last_two_checkpoints_are_kept(tmp_path):
    run(tmp_path, max_epochs=4)
    assert len(checkpoint.steps(tmp_path / "checkpoints")) == 2
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 7, {"trainable": {"w": torch.ones(3)}}, {})
    raw = bytearray((path / "state.pt").read_bytes())
    raw[len(raw) // 2] ^= 1
    (path / "state.pt").write_bytes(raw)
    with pytest.raises(RunError, match="damaged"):
        checkpoint.load(path)


def test_a_flipped_bit_of_a_checkpoints_facts_is_noticed_or_changes_no_fact(tmp_path):
    told = {"epoch": 3, "best": None, "run": {"data": "0f" * 16, "rate": 0.1, 9: "x", 10: (1, 2)}}
    path = checkpoint.save(tmp_path, 7, {}, told) / checkpoint.FACTS
    good = path.read_bytes()
    facts, unnoticed = checkpoint.facts_of(path.parent), 0
    assert facts["epoch"] == 3
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            found = checkpoint.facts_of(path.parent)
        except RunError as error:
            assert "is damaged" in str(error)
        else:
            unnoticed += 1
            assert all(found[key] == value for key, value in facts.items() if key != "facts_sha256")
    assert unnoticed < 0.2 * len(good)  # blanks, and the name of the checksum


def test_a_checkpoint_that_did_not_fit_leaves_nothing_behind(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 7, {"trainable": {}}, {})

    def full(state, file):
        file.write(b"the first half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 8, {"trainable": {}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_what_a_killed_trainer_left_of_a_checkpoint_is_removed_by_the_next(tmp_path):
    (tmp_path / ".step-00000007.tmp").mkdir()
    (tmp_path / ".step-00000007.tmp" / "state.pt").write_bytes(b"half")
    checkpoint.save(tmp_path, 8, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]


def test_of_many_checkpoints_of_one_step_the_last_two_are_kept_in_order(tmp_path):
    kept = [checkpoint.save(tmp_path, 7, {}, {"number": n}) for n in range(12)][-2:]
    (tmp_path / "step-00000007 copy").mkdir()
    assert checkpoint.steps(tmp_path) == kept
    assert [checkpoint.facts_of(path)["number"] for path in kept] == [10, 11]
    checkpoint.drop_newer(kept[0])
    assert checkpoint.steps(tmp_path) == kept[:1]


def test_checkpoint_facts_are_plain_json(tmp_path):
    path = checkpoint.save(tmp_path, 7, {}, {"epoch": 1})
    assert json.loads((path / "facts.json").read_text())["step"] == 7


def test_progress_counts_every_step_of_every_epoch(tmp_path):
    _, recorder, _ = run(tmp_path, max_epochs=3)
    training = [p for p in recorder.progresses if p.phase == "training"]
    assert [p.done for p in training] == list(range(1, 13))
    assert {p.total for p in training} == {12}


def test_rate_warms_up_and_falls_to_zero():
    factor = loop.warmup_cosine(100, 0.1)
    rates = [factor(step) for step in range(100)]
    assert rates[0] < rates[9] < 1 and max(rates) == rates[10] == 1
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert factor(100) == pytest.approx(0, abs=1e-12)


def test_evaluation_equals_a_count_by_hand():
    data = clips()
    module = Network()
    found = evaluate(
        module,
        lambda m, x: m(x),
        data.features,
        data.labels,
        data.splits["test"],
        device=torch.device("cpu"),
        batch_size=4,
        label_smoothing=0.0,
    )
    rows = data.splits["test"]
    logits = module(torch.from_numpy(data.features[rows].astype(np.float32)))
    truth = torch.from_numpy(data.labels[rows])
    assert found.n == len(rows)
    assert found.accuracy == pytest.approx((logits.argmax(1) == truth).float().mean().item())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, truth).item(), rel=1e-5)
    assert math.isclose(found.probabilities.sum(), len(rows), rel_tol=1e-5)


def test_f1_is_averaged_over_the_classes_that_are_there():
    found = macro_f1(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 3]))  # as scikit-learn's f1_score has it
    assert found == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)


def test_fast_float32_stays_float32():
    before = torch.get_float32_matmul_precision()
    try:
        assert "float32 matmul" in precision.use_fast_float32()
        a, b = torch.randn(2, 256, 256)
        error = ((a @ b).double() - a.double() @ b.double()).abs().max() / (a @ b).abs().max()
        assert error < precision.LARGEST_ERROR
    finally:
        torch.set_float32_matmul_precision(before)
