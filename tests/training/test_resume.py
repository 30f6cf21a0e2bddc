"""A training that was stopped or killed and goes on gives what one that was never stopped gives, bit for bit."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from sousa_engine.backbones.waveforms import TakesWaveforms
from sousa_engine.core.config import AugmentConfig, LoraConfig, TargetModule, TrainingConfig
from sousa_engine.core.errors import RunError
from sousa_engine.core.methods import METHODS as METHODS_OF_LORA
from sousa_engine.core.records import UPDATE
from sousa_engine.training import adapters, checkpoint, loop, randomness, resume
from tests.training.test_loop import CLASSES, MELS, Recorder, clips

STEPS, PER_EPOCH = 20, 4  # of a whole training, of an epoch
WIDTH = 6


class Killed(BaseException):
    """Ends a training without a word, as SIGKILL does: nothing after it in the loop runs."""


class Body(TakesWaveforms):
    """Everything that a resumed training could get wrong: dropout, drop-path by three generators, BatchNorm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(MELS, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Dropout(0.2)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, features):
        x = self.dropout(self.norm(self.first(features.mean(1))).relu())
        kept = [random.random() > 0.2, np.random.random() > 0.2] if self.training else [True]
        return self.classifier(x + all(kept) * self.second(x))


def built(method: str) -> nn.Module:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    network = SimpleNamespace(
        module=Body(), head_path="classifier", num_classes=CLASSES, variant=SimpleNamespace(name="body")
    )
    targets = [("first", (WIDTH, MELS)), ("second", (WIDTH, WIDTH))]
    found = [TargetModule(path=path, kind="Linear", shape=shape) for path, shape in targets]
    takes_targets = method not in ("full", "bitfit")
    drops = method in ("lora", "adalora", "pissa", "dora", "rslora", "loraplus")
    settings = {"r": 2, "dropout": 0.1} if drops else {}
    config = LoraConfig(method=method, targets=tuple(found) if takes_targets else (), **settings)
    return adapters.attach(network, config, total_steps=STEPS)  # type: ignore[arg-type]


class Story:
    """A training told in several launches, each on a network built anew, into one folder and one record."""

    def __init__(self, folder, method="lora", **training):
        self.folder, self.method = folder, method
        self.settings = TrainingConfig(**{"max_epochs": STEPS // PER_EPOCH, "batch_size": 8, **training})
        self.recorder, self.outcome, self.module = Recorder(), None, None

    def launch(self, *, stop_at=None, kill_at=None, save_every_s=1e9):
        """From the newest checkpoint on, if there is one. stop_at, kill_at: steps."""
        resumed = resume.find(self.folder) if resume.has_checkpoints(self.folder) else None
        self.module = built(self.method)
        done = [resumed.step if resumed else 0]
        metrics = self.recorder.metrics

        def watch(step, values, **more):
            metrics(step, values, **more)
            if step == kill_at and "train/loss" in values:
                raise Killed
            done[0] = step

        self.recorder.metrics = watch
        plus_ratio = 16.0 if self.method == "loraplus" else 1.0
        groups = adapters.parameter_groups(
            self.module, "classifier", lr=0.05, head_lr=0.02, weight_decay=0.01, plus_ratio=plus_ratio
        )
        try:
            self.outcome = loop.train(
                loop.Setup(
                    module=self.module,
                    forward=lambda module, features: module(features),
                    groups=groups,
                    data=clips(),
                    training=self.settings,
                    augment=AugmentConfig(),
                    seed=5,
                    accelerator=Accelerator(cpu=True),
                    folder=self.folder,
                    reporter=self.recorder,
                    stop=lambda: stop_at is not None and done[0] >= stop_at,
                    resume_from=resumed.path if resumed else None,
                    save_every_s=save_every_s,
                )
            )
        except Killed:
            self.outcome = None
        finally:
            self.recorder.metrics = metrics
        return self

    def measured(self):
        """(metric, step) -> value, as the store keeps them: the last one counts. Without what a stop alone measures."""
        found = {(name, step): value for name, step, value, _ in self.recorder.points}
        return {key: v for key, v in found.items() if not (key[0].startswith(UPDATE) and key[1] % PER_EPOCH)}

    def assert_same(self, other):
        assert self.measured() == other.measured()
        for mine, theirs in ((self.outcome.valid, other.outcome.valid), (self.outcome.test, other.outcome.test)):
            assert np.array_equal(mine.probabilities, theirs.probabilities)
            assert (mine.accuracy, mine.loss, mine.macro_f1, mine.n) == (
                theirs.accuracy, theirs.loss, theirs.macro_f1, theirs.n
            )  # fmt: skip
        assert (self.outcome.best_step, self.outcome.step, self.outcome.epochs) == (
            other.outcome.best_step, other.outcome.step, other.outcome.epochs
        )  # fmt: skip
        ours, theirs = adapters.trained_state(self.module), adapters.trained_state(other.module)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


STOPS = [(1,), (4,), (6,), (8, 8, 9), (3, 11, 15, 19), (20,)]
KILLS = [(5,), (9, 9), (12, 17, 20)]
EACH = ["lora", "adalora"]  # at every place; AdaLoRA's ranks follow the steps
OTHERS = [method for method in METHODS_OF_LORA if method not in EACH]  # at some


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Method -> a training that was never stopped, each made once."""
    made = {}

    def get(method):
        if method not in made:
            made[method] = Story(tmp_path_factory.mktemp(method), method).launch()
        return made[method]

    return get


@pytest.mark.parametrize("forgotten", [lambda: random.seed(1), lambda: np.random.seed(1), lambda: torch.manual_seed(1)])
def test_a_generator_that_is_not_restored_would_be_seen(whole, tmp_path, monkeypatch, forgotten):
    """The network of these tests draws from every generator: otherwise they would prove nothing."""
    story = Story(tmp_path).launch(stop_at=6)
    restore = randomness.restore
    monkeypatch.setattr(randomness, "restore", lambda *words: (restore(*words), forgotten()))
    assert story.launch().measured() != whole("lora").measured()


@pytest.mark.parametrize("method", EACH)
@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_a_stopped_training_goes_on_as_if_it_had_not_been(whole, tmp_path, method, stops):
    story = Story(tmp_path, method)
    for step in stops:
        story.launch(stop_at=step)
        assert story.outcome.stopped and story.outcome.test is None
    story.launch().assert_same(whole(method))


@pytest.mark.parametrize("method", OTHERS)
def test_every_other_method_goes_on_as_well(whole, tmp_path, method):
    Story(tmp_path, method).launch(stop_at=6).launch(kill_at=11).launch().assert_same(whole(method))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_stop_while_a_split_is_measured_is_heard_at_its_next_batch(whole, tmp_path, monkeypatch, split):
    """The patience of a stop is a minute, and a split may be thousands of clips."""
    story, measured = Story(tmp_path, batch_size=8), []
    evaluate = loop.evaluate

    def watched(*words, stop, **more):
        """Stops before the first batch of the second epoch's validation, or of the test."""
        measured.append(words[4].tolist())
        last = measured[-1] == clips().splits[split].tolist() and len(measured) == (6 if split == "test" else 2)
        return evaluate(*words, stop=(lambda: True) if last else stop, **more)

    monkeypatch.setattr(loop, "evaluate", watched)
    story.launch()
    assert story.outcome.stopped and story.outcome.test is None
    at = 20 if split == "test" else 8
    assert story.outcome.step == at and ("checkpoint", f"Saved at step {at} before stopping.") in story.recorder.events
    assert [step for name, step, *_ in story.recorder.points if name == "valid/loss"] == [
        *range(4, at + (split == "test"), 4)
    ]
    monkeypatch.undo()
    story.launch().assert_same(whole("lora"))


@pytest.mark.parametrize("method", EACH)
@pytest.mark.parametrize("kills", KILLS, ids=str)
def test_a_killed_training_goes_on_from_its_last_checkpoint(whole, tmp_path, method, kills):
    story = Story(tmp_path, method)
    for step in kills:
        story.launch(kill_at=step)
        assert story.outcome is None
    story.launch().assert_same(whole(method))


def test_checkpoints_within_an_epoch_lose_a_killed_training_one_step(whole, tmp_path):
    story = Story(tmp_path).launch(kill_at=7, save_every_s=0)
    assert resume.find(tmp_path).step == 6
    story.launch(kill_at=15, save_every_s=0).launch().assert_same(whole("lora"))


def test_the_answers_of_the_best_epoch_outlive_a_resume(whole, tmp_path):
    """Stopped after its best epoch, never better again: predictions are made of an evaluation of the launch before."""
    best = whole("pissa").outcome.best_step
    story = Story(tmp_path, "pissa").launch(stop_at=best + 1)
    kept = story.outcome.valid
    story.launch(stop_at=best + 2)
    assert np.array_equal(story.outcome.valid.probabilities, kept.probabilities)
    assert story.outcome.best_accuracy == kept.accuracy


def test_patience_counts_over_a_resume(tmp_path):
    never = Story(tmp_path / "never", patience=2, max_epochs=30, lr=1e-9).launch()
    story = Story(tmp_path / "often", patience=2, max_epochs=30, lr=1e-9)
    for step in range(3, never.outcome.step, 3):
        story.launch(stop_at=step)
    story.launch().assert_same(never)
    assert [kind for kind, _ in story.recorder.events].count("early stop") == 1


def test_a_training_that_failed_after_its_last_epoch_only_tests_again(whole, tmp_path):
    story = Story(tmp_path).launch()
    again = Story(tmp_path)
    again.launch()
    assert [name for name, *_ in again.recorder.points] == ["test/loss", "test/accuracy", "test/macro_f1"]
    again.recorder.points = story.recorder.points
    again.assert_same(whole("lora"))


def test_training_time_is_the_sum_of_all_launches(tmp_path):
    story = Story(tmp_path).launch(stop_at=6)
    first = story.outcome.train_s
    state, _ = checkpoint.load(resume.find(tmp_path).path)
    assert 0 < state["at"]["train_s"] <= first
    assert story.launch().outcome.train_s > state["at"]["train_s"]


# Checkpoints that are damaged


def flip(path):
    raw = bytearray((path / checkpoint.STATE).read_bytes())
    raw[len(raw) // 2] ^= 1
    (path / checkpoint.STATE).write_bytes(raw)


def flip_a_fact(path):
    facts = (path / checkpoint.FACTS).read_text()
    assert '"epoch": 3' in facts
    (path / checkpoint.FACTS).write_text(facts.replace('"epoch": 3', '"epoch": 2'))


def truncate(path):
    (path / checkpoint.STATE).write_bytes((path / checkpoint.STATE).read_bytes()[:100])


DAMAGE = {
    "one bit": (flip, "sha256"),
    "one bit of the facts": (flip_a_fact, "facts.json has changed"),
    "truncated": (truncate, "it has 100 of"),
    "no state": (lambda path: (path / checkpoint.STATE).unlink(), "no state.pt"),
    "no facts": (lambda path: (path / checkpoint.FACTS).unlink(), "no facts.json"),
    "half the facts": (lambda path: (path / checkpoint.FACTS).write_text('{"sha'), "cannot be read"),
    "facts of another kind": (lambda path: (path / checkpoint.FACTS).write_text("[]"), "cannot be read"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(whole, tmp_path, damage, said):
    story = Story(tmp_path).launch(stop_at=10)
    older, newest = checkpoint.steps(tmp_path / "checkpoints")
    damage(newest)
    found = resume.find(tmp_path)
    assert (found.path, found.step, found.epoch) == (older, 8, 2)
    (sentence,) = found.damaged
    assert said in sentence and newest.name in sentence
    story.launch(stop_at=9)
    assert newest not in checkpoint.steps(tmp_path / "checkpoints")
    assert resume.find(tmp_path).damaged == ()
    story.launch().assert_same(whole("lora"))


def test_a_checkpoint_is_good_only_with_the_best_that_it_names(whole, tmp_path):
    story = Story(tmp_path).launch(kill_at=9)
    names = [checkpoint.facts_of(path)["best"] for path in checkpoint.steps(tmp_path / "checkpoints")]
    assert names == ["step-00000004", "step-00000008"], "this training is to get better in its second epoch"
    assert [path.name for path in checkpoint.steps(tmp_path / "best")] == names
    flip(tmp_path / "best" / names[1])
    assert resume.find(tmp_path).step == 4
    story.launch().assert_same(whole("lora"))
    in_use = {checkpoint.facts_of(path)["best"] for path in checkpoint.steps(tmp_path / "checkpoints")}
    assert {path.name for path in checkpoint.steps(tmp_path / "best")} == in_use
    for name in in_use:
        flip(tmp_path / "best" / name)
    with pytest.raises(RunError, match=r"None of its checkpoints.*damaged"):
        resume.find(tmp_path)


def test_what_forbids_to_go_on_is_a_sentence(tmp_path):
    with pytest.raises(RunError, match="no checkpoint"):
        resume.find(tmp_path)
    Story(tmp_path).launch(stop_at=6)
    for path in checkpoint.steps(tmp_path / "checkpoints"):
        facts = json.loads((path / checkpoint.FACTS).read_text())
        del facts["format"], facts["bytes"], facts["facts_sha256"]
        (path / checkpoint.FACTS).write_text(json.dumps(facts))
    with pytest.raises(RunError, match="another version"):
        resume.find(tmp_path)
    for path in checkpoint.steps(tmp_path / "checkpoints"):
        truncate(path)
    with pytest.raises(RunError, match=r"None of its checkpoints.*damaged.*damaged"):
        resume.find(tmp_path)


def test_a_quick_look_reads_no_state(tmp_path, monkeypatch):
    Story(tmp_path).launch(stop_at=6)
    monkeypatch.setattr(checkpoint, "sha256", lambda path: pytest.fail("read"))
    assert resume.find(tmp_path, thorough=False).step == 6


def test_what_changed_since_then_is_told_apart():
    then = {"weights": "w", "device": "cpu", "threads": 1, "versions": {"torch": "1"}}
    assert resume.differences(then, then) == ([], [])
    forbids, loosens = resume.differences(then, {**then, "weights": "v"})
    assert len(forbids) == 1 and "w then, v now" in forbids[0] and not loosens
    forbids, loosens = resume.differences(then, {**then, "threads": 2, "versions": {"torch": "2"}})
    assert not forbids and loosens == ["threads 1 then, 2 now", "torch 1 then, 2 now"]
