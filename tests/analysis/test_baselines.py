"""Baselines: computed once per data set and split, selected without test, and shown by command line and page."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from streamlit.testing.v1 import AppTest

from sousa_engine.analysis import baselines
from sousa_engine.analysis.baselines import MAJORITY, ONSETS, POOLED
from sousa_engine.analysis.significance import paired
from sousa_engine.cli.main import main
from sousa_engine.core import rudiments
from sousa_engine.core.config import DataConfig, RunConfig
from sousa_engine.core.errors import DataError, WorkspaceError
from sousa_engine.data import audio, rhythm, synth
from sousa_engine.data.dataset import DataSet
from sousa_engine.data.manifest import majority_baseline, open_dataset
from sousa_engine.runs import background
from sousa_engine.workspace import PROJECT_ROOT, Workspace, intake

CLASSES = ("flam", "five-stroke-roll", "single-paradiddle")
CLIPS = {"train": 5, "valid": 2, "test": 3}


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(baselines, "TREES", 40)


@pytest.fixture(scope="module")
def recordings():
    """(split, class, number) -> two seconds of it; one player a split."""
    found = {}
    for label in CLASSES:
        r = rudiments.rudiment(label)
        for player, (split, clips) in enumerate(CLIPS.items()):
            for i in range(clips):
                found[split, label, i], _ = synth.render_pattern(
                    r.strokes, cycle_ticks=r.cycle_ticks, ticks_per_beat=r.ticks_per_beat, tempo_bpm=90.0 + 5 * i,
                    player_seed=player, tier=synth.TIERS["advanced"], room="dry", snr_db=40.0, seed=i, clip_s=2.0,
                )  # fmt: skip
    return found


@pytest.fixture
def drums(tmp_path, recordings):
    return written(tmp_path / "drums", recordings)


def written(folder, recordings):
    for (split, label, i), waveform in recordings.items():
        path = folder / split / label / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, synth.sound.SAMPLE_RATE_HZ)
    return folder


@pytest.fixture(scope="module")
def workspace_of_all(tmp_path_factory, recordings):
    """A workspace that has the baselines of such drums; for tests that only read."""
    workspace = Workspace(root=tmp_path_factory.mktemp("computed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "TREES", 40)
        baselines.compute(opened(written(tmp_path_factory.mktemp("of all") / "drums", recordings)), workspace)
    return workspace


@pytest.fixture
def computed(drums, workspace, workspace_of_all):
    """The baselines of `drums`, in `workspace` too."""
    (kept,) = (workspace_of_all.cache / "baselines").iterdir()
    shutil.copytree(kept, baselines.folder_of(opened(drums), workspace))
    found = baselines.cached(opened(drums), workspace)
    assert found is not None
    return found


def opened(root, **settings):
    return open_dataset(DataConfig(dataset=str(root), **settings))


def never(*args, **kwargs):
    pytest.fail("computed again")


def test_patterns_that_sound_alike_on_average_are_told_apart_by_their_onsets(drums, workspace):
    manifest = opened(drums)
    found = baselines.compute(manifest, workspace)
    assert [one.name for one in found.baselines] == [MAJORITY, POOLED, ONSETS]
    assert found[ONSETS].right == found[ONSETS].n == 9 and found[ONSETS].macro_f1 == 1.0
    assert found[MAJORITY].accuracy.value == majority_baseline(manifest, "test") == 1 / 3
    assert found[ONSETS].accuracy.low < 1.0 and found[ONSETS].how in found[ONSETS].tried
    assert len(found[ONSETS].tried) == 3 and not found[MAJORITY].tried


def test_predictions_are_kept_clip_by_clip_and_pair_with_a_runs(drums, computed):
    manifest, found = opened(drums), computed
    for one in found.baselines:
        predictions = found.predictions(one.name)
        assert {p.clip_id for p in predictions} == {manifest.clips[i].clip_id for i in manifest.indices("test")}
        assert sum(p.predicted == p.label for p in predictions) == one.right
        assert all(p.label == manifest.by_id[p.clip_id].label and p.split == "test" for p in predictions)
        assert all(0.0 <= p.label_probability <= p.probability <= 1.0 for p in predictions)
    difference = paired(found.predictions(MAJORITY), found.predictions(ONSETS))
    assert difference is not None and difference.n == 9 and difference.only_second == 6


def test_a_second_call_computes_nothing_even_in_another_process(drums, workspace, computed, monkeypatch):
    first = computed
    monkeypatch.setattr(rhythm, "hear", never)
    monkeypatch.setattr(baselines, "measure", never)
    assert baselines.compute(opened(drums), workspace, tell=never) == first
    assert baselines.cached(opened(drums), workspace) == first
    assert sorted(path.name for path in first.folder.iterdir()) == sorted(
        ["lock", "result.json", *(f"{name}.jsonl" for name in (MAJORITY, POOLED, ONSETS))]
    )


def test_other_clips_or_splits_or_figures_have_other_baselines(drums, workspace, monkeypatch):
    def key():
        return baselines.folder_of(opened(drums), workspace)

    keys = [key()]
    soundfile.write(drums / "train/flam/0.wav", np.zeros(16_000), 16_000)
    keys.append(key())
    (drums / "train/flam/1.wav").rename(drums / "test/flam/9.wav")
    keys.append(key())
    keys.append(baselines.folder_of(opened(drums, clip_s=1.0), workspace))
    monkeypatch.setattr(baselines, "METHOD", 99)
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_where_nothing_was_computed_or_the_data_is_gone_there_is_none(drums, workspace):
    assert baselines.cached(opened(drums), workspace) is None
    assert baselines.find(workspace, RunConfig(data=DataConfig(dataset=str(drums / "gone")))) == ()


def test_classifiers_are_fitted_on_train_and_selected_on_valid_never_on_test(drums, workspace, computed):
    """Whatever test holds: with test recordings of all other classes, fit and choice stay as they are."""
    manifest, found = opened(drums), computed
    asked = baselines.choose_clips(manifest)
    moved = {c.clip_id: manifest.classes[(manifest.classes.index(c.label) + 1) % 3] for c in manifest.clips}
    wrong = replace(
        manifest,
        clips=tuple(replace(c, label=moved[c.clip_id]) if c.split == "test" else c for c in manifest.clips),
    )
    again = baselines.compute(wrong, workspace)
    assert asked.clips.tolist() == baselines.choose_clips(wrong).clips.tolist()
    for name in (POOLED, ONSETS):
        assert again[name].how == found[name].how and again[name].tried == found[name].tried
        named = [{p.clip_id: p.predicted for p in one.predictions(name)} for one in (found, again)]
        assert named[0] == named[1]
    assert again[ONSETS].right == 0


def test_of_many_clips_some_are_drawn_evenly_but_test_is_whole(drums, monkeypatch):
    manifest = opened(drums)
    assert len(baselines.choose_clips(manifest).clips) == len(manifest.clips)
    monkeypatch.setattr(baselines, "MOST_CLIPS", {"train": 7, "valid": 3})
    asked, again = baselines.choose_clips(manifest), baselines.choose_clips(manifest)
    assert [len(asked.of(split)) for split in ("train", "valid", "test")] == [7, 3, 9]
    assert asked.clips.tolist() == sorted(asked.clips) == again.clips.tolist()
    train = [manifest.clips[asked.clips[i]] for i in asked.of("train")]
    assert all(clip.split == "train" for clip in train)
    assert sorted(Counter(clip.label for clip in train).values()) == [2, 2, 3]


def test_what_a_page_or_a_report_finds_is_of_exactly_the_clips_that_a_run_was_asked(drums, workspace, computed):
    config = RunConfig(data=DataConfig(dataset=str(drums)))
    assert baselines.find(Workspace(root=workspace.root / "another"), config) == ()
    found = computed
    assert baselines.find(workspace, config) == found.baselines
    assert baselines.find(workspace, RunConfig(data=DataConfig(dataset=str(drums), clip_s=1.0))) == ()
    asked = found.predictions(ONSETS)
    assert baselines.of_clips(found, asked[::-1]) and not baselines.of_clips(found, asked[1:])
    assert not baselines.of_clips(found, (replace(asked[0], label="other"), *asked[1:]))


def test_clips_of_an_interrupted_attempt_are_not_analysed_again(drums, workspace, monkeypatch):
    heard = []
    monkeypatch.setattr(rhythm, "hear", lambda waveform, hear=rhythm.hear: heard.append(1) or hear(waveform))
    monkeypatch.setattr(baselines, "BATCH", 10)

    def stop(doing, done, total):
        if done >= 20:
            raise KeyboardInterrupt

    manifest = opened(drums)
    with pytest.raises(KeyboardInterrupt):
        baselines.compute(manifest, workspace, tell=stop)
    assert len(heard) == 20 and baselines.cached(manifest, workspace) is None
    ended = baselines.look(manifest, workspace)
    assert ended and not ended.is_running and ended.error == intake.STOPPED
    with (baselines.folder_of(manifest, workspace) / "figures.part").open("ab") as file:
        file.write(b"half a row")
    told = []
    found = baselines.compute(manifest, workspace, tell=lambda *what: told.append(what))
    assert len(heard) == 30 and found[ONSETS].right == 9
    assert told[0] == (baselines.LISTENING, 20, 30) and (baselines.LISTENING, 30, 30) in told
    assert told[-1][0] == baselines.CHOOSING and told[-1][1] == told[-1][2]
    assert baselines.look(manifest, workspace) is None


def test_a_clip_that_cannot_be_read_is_named(drums, workspace, monkeypatch):
    def load(source, *rest, load=audio.load):
        if source.name == "1.wav" and source.parent.name == "flam":
            raise DataError(f"{source} cannot be decoded.")
        return load(source, *rest)

    monkeypatch.setattr(audio, "load", load)
    with pytest.raises(DataError, match=r"train/flam/1\.wav cannot be decoded") as caught:
        baselines.compute(opened(drums), workspace)
    assert str(caught.value).count("cannot be decoded") == 3
    ended = baselines.look(opened(drums), workspace)
    assert ended and "cannot be decoded" in ended.error


def test_a_workspace_that_cannot_be_written_to_is_told(drums, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written to"):
        baselines.compute(opened(drums), Workspace(root=tmp_path / "file"))


# The command line


@pytest.fixture
def sousa(workspace):
    def call(*words):
        return CliRunner().invoke(main, ["--workspace", str(workspace.root), "baselines", *map(str, words)])

    return call


def test_the_command_prints_a_table_with_n_and_intervals_and_the_next_step(sousa, drums):
    done = sousa(drums)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "drums: test, n = 9 clips of 3 classes; fitted on train, selected on valid"
    assert lines[2].startswith("Majority class") and "33.3%" in lines[2] and "12.1% to 64.6%" in lines[2]
    assert lines[4].startswith("Onset sequence") and "100.0%" in lines[4] and "best of 3 on valid" in lines[4]
    assert f"data={drums} lora=probe" in lines[5]
    assert "listening, 0 of 30 clips" in done.stderr and "choosing, 4 of 4 fits" in done.stderr
    again = sousa(drums)
    assert again.stdout == done.stdout and not again.stderr


def test_the_command_prints_json(sousa, drums, computed):
    facts = json.loads(sousa(drums, "--json").stdout)
    onsets = facts["baselines"][2]
    assert onsets["name"] == "onset-sequence" and onsets["n"] == 9 and onsets["accuracy"] == 1.0
    assert 0.6 < onsets["low"] < onsets["high"] == 1.0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["tinny"], "tiny"),
        (["/no/such/folder"], "/no/such/folder"),
        (["micro", "training.lr=1"], "data.split_seed"),
        (["micro", "data.clip_s=abc"], "clip_s"),
        ([], "DATASET"),
    ],
)
def test_a_mistake_exits_2_with_one_sentence(sousa, words, named):
    done = sousa(*words)
    assert done.exit_code == 2 and named in done.stderr and "Traceback" not in done.output
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


def test_a_mistyped_workspace_is_not_made(tmp_path):
    done = CliRunner().invoke(main, ["--workspace", str(tmp_path / "nope"), "baselines", "micro"])
    assert done.exit_code == 2 and not (tmp_path / "nope").exists()


@pytest.mark.process
def test_two_starts_make_one_process_that_outlives_its_caller(drums, workspace):
    data = DataSet.open(DataConfig(dataset=str(drums), clip_s=1.0), workspace)
    assert [background.compute_baselines(workspace, data) for _ in range(2)] == [True, False]
    manifest = data.manifest
    while (doing := baselines.look(manifest, workspace)) and doing.is_running:
        time.sleep(0.1)
    log = (baselines.folder_of(manifest, workspace) / intake.LOG).read_text()
    found = baselines.cached(DataSet.open(data.config, workspace).manifest, workspace)  # it knows the scan now
    assert doing is None and found is not None, log
    assert found[ONSETS].n == 9 and "Onset sequence" in log


# The page


@pytest.fixture
def visit(drums, workspace, monkeypatch):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))

    def go(page="data", **parameters):
        at = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=180)
        at.switch_page(str(PROJECT_ROOT / "pages" / f"{page}.py"))
        for name, value in ({"dataset": str(drums)} | parameters).items():
            at.query_params[name] = value
        at.run()
        assert not at.exception
        return at

    return go


def button(at, label):
    return next((one for one in at.button if one.label == label), None)


def test_the_page_offers_to_compute(visit, drums, monkeypatch):
    asked = []
    monkeypatch.setattr(background, "compute_baselines", lambda workspace, data: asked.append(data) or True)
    at = visit()
    button(at, "Compute").click().run()
    assert not at.exception and [data.config.dataset for data in asked] == [str(drums)]


def test_the_page_shows_what_was_computed(visit, computed):
    at = visit()
    table = next(frame.value for frame in at.dataframe if "baseline" in frame.value.columns)
    assert table["baseline"].tolist() == ["Majority class", "Pooled log-mel statistics", "Onset sequence"]
    assert table["accuracy"].tolist()[2] == 1.0 and table["interval"].tolist()[0] == "12.1 to 64.6 %"
    assert button(at, "Compute") is None
    assert any("n = 9" in caption.value for caption in at.caption)


def test_the_page_follows_a_computation_of_any_process_and_can_stop_it(visit, drums, workspace):
    folder = baselines.folder_of(opened(drums), workspace)
    lock = intake.lock(folder)
    assert lock is not None
    try:
        with intake.taking_in(folder, lock_fd=os.dup(lock)) as tell:
            tell(baselines.LISTENING, 12, 30)
            at = visit()
            assert "Analysing clips: 12 of 30" in at.get("progress")[0].proto.text
            assert button(at, "Compute") is None
            button(at, "Stop").click().run()
            assert (folder / "stop").exists()
    finally:
        os.close(lock)


def test_the_page_tells_why_the_last_attempt_ended(visit, drums, workspace):
    with pytest.raises(DataError), intake.taking_in(baselines.folder_of(opened(drums), workspace)):
        raise DataError("flam/*3*.wav cannot be decoded.")
    at = visit()
    assert "flam/\\*3\\*.wav cannot be decoded" in at.error[0].value and button(at, "Compute")


def test_the_linear_probe_opens_launch_with_the_data_set_and_no_targets(visit, drums):
    at = visit("launch", lora="probe")
    assert at.get_by_key("launch.set").value == "none"
    assert at.get_by_key("launch.data.dataset").value == str(drums)
    assert "lora" not in at.query_params
