"""Data sets: three layouts, splits, and what a user is told when something is wrong."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError, UnknownNameError
from sousa_engine.data import manifest as manifests
from sousa_engine.data import splits, survey
from sousa_engine.data.dataset import DataSet


def write_wav(path, seconds=0.5, rate_hz=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * rate_hz), dtype=np.float32), rate_hz, subtype="PCM_16")


def write_classes(root, *, classes=("tap", "roll"), n=6, seconds=0.5):
    for label in classes:
        for i in range(n):
            write_wav(root / label / f"{i:02d}.wav", seconds)
    return root


def write_table(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def open_path(path, **settings):
    return manifests.open_dataset(DataConfig(dataset=str(path), **settings))


# Embedded sets


def test_tiny_has_40_classes_of_25_clips_in_three_splits_of_different_players():
    tiny = manifests.open_dataset(DataConfig(dataset="tiny"))
    assert (len(tiny.classes), len(tiny.clips), tiny.clip_s) == (40, 1000, 4.0)
    assert all(sum(row.values()) == 25 and min(row.values()) >= 1 for row in tiny.counts.values())
    players = {split: {tiny.clips[i].group for i in tiny.indices(split)} for split in splits.SPLITS}
    assert (
        not players["train"] & players["valid"]
        | players["train"] & players["test"]
        | players["valid"] & players["test"]
    )


def test_embedded_clips_keep_their_facts_as_columns():
    clip = manifests.open_dataset(DataConfig(dataset="micro")).clips[0]
    assert {"player", "tempo_bpm", "tier", "snr_db"} <= set(clip.columns)
    assert clip.columns["player"] == clip.group


def test_embedded_sets_are_listed_with_their_sizes_smallest_first():
    listed = manifests.dataset_names()
    assert [s.clips for s in listed] == sorted(s.clips for s in listed)
    assert {s.name: s.clips for s in listed}["tiny"] == 1000


def test_another_clip_length_of_an_embedded_set_is_another_data_set_for_the_cache():
    four, two = (manifests.open_dataset(DataConfig(dataset="micro", clip_s=s)) for s in (None, 2.0))
    assert (four.clip_s, two.clip_s) == (4.0, 2.0)
    assert four.content_key != two.content_key


def test_clips_shorter_than_one_cycle_of_their_rudiment_are_reported():
    short = manifests.open_dataset(DataConfig(dataset="micro", clip_s=1.0))
    assert any("shorter than one cycle" in note for note in short.notes)
    assert not manifests.open_dataset(DataConfig(dataset="micro")).notes


def test_an_embedded_clip_length_that_cannot_be_made_is_refused_with_the_reach():
    with pytest.raises(DataError, match=r"1 to 4 s"):
        manifests.open_dataset(DataConfig(dataset="tiny", clip_s=9))


def test_an_unknown_name_names_the_nearest_and_says_how_to_bring_own_data():
    with pytest.raises(UnknownNameError, match=r"Nearest: tiny.*folder of classes"):
        manifests.open_dataset(DataConfig(dataset="tinny"))


def test_a_path_that_does_not_exist_is_called_a_path():
    with pytest.raises(DataError, match=r"no folder or file"):
        manifests.open_dataset(DataConfig(dataset="./nowhere/drums"))


# Folder of classes


def test_a_folder_of_classes_is_split_in_shares_with_every_class_everywhere(tmp_path):
    found = open_path(write_classes(tmp_path / "drums", n=20), valid_fraction=0.15, test_fraction=0.2)
    assert found.name == "drums" and found.classes == ("roll", "tap")
    assert found.counts == {label: {"train": 13, "valid": 3, "test": 4} for label in found.classes}


def test_the_split_follows_its_seed_and_nothing_else(tmp_path):
    root = write_classes(tmp_path / "drums", n=12)
    splits_of = {seed: [c.split for c in open_path(root, split_seed=seed).clips] for seed in (0, 1)}
    assert splits_of[0] == [c.split for c in open_path(root, split_seed=0).clips]
    assert splits_of[0] != splits_of[1]


def test_a_new_class_leaves_the_split_of_the_others_alone(tmp_path):
    root = write_classes(tmp_path / "drums", n=10)
    before = {c.clip_id: c.split for c in open_path(root).clips}
    write_classes(root, classes=("flam",), n=10)
    after = {c.clip_id: c.split for c in open_path(root).clips}
    assert {k: after[k] for k in before} == before


def test_split_folders_are_taken_as_they_are(tmp_path):
    for split, n in (("train", 4), ("val", 2), ("test", 3)):
        write_classes(tmp_path / "drums" / split, n=n)
    assert open_path(tmp_path / "drums").counts["tap"] == {"train": 4, "valid": 2, "test": 3}


def test_a_missing_split_folder_is_taken_from_train_and_said(tmp_path):
    write_classes(tmp_path / "drums/train", n=10)
    write_classes(tmp_path / "drums/test", n=2)
    found = open_path(tmp_path / "drums")
    assert found.counts["tap"] == {"train": 8, "valid": 2, "test": 2}
    assert any(note.startswith("Valid: taken from train") for note in found.notes)


def test_split_folders_mixed_with_class_folders_are_refused(tmp_path):
    write_classes(tmp_path / "drums", classes=("train", "test", "tap"))
    with pytest.raises(DataError, match=r"mixes split folders \(test, train\) with class folders \(tap\)"):
        open_path(tmp_path / "drums")


def test_unusable_files_are_excluded_with_their_reason_and_the_rest_stays(tmp_path):
    root = write_classes(tmp_path / "drums")
    (root / "tap/empty.wav").touch()
    (root / "tap/text.wav").write_text("this is a text, not a recording")
    (root / "roll/song.m4a").write_bytes(b"\0" * 64)
    write_wav(root / "roll/click.wav", seconds=0.004)
    write_wav(root / "roll/tick.wav", seconds=0.015)
    found = open_path(root)
    reasons = {e.name: e.reason for e in found.excluded}
    assert len(found.clips) == 12
    assert set(reasons) == {"tap/empty.wav", "tap/text.wav", "roll/song.m4a", "roll/click.wav", "roll/tick.wav"}
    assert "0 bytes" in reasons["tap/empty.wav"] and "shorter than 0.005 s" in reasons["roll/click.wav"]
    assert "shorter than 0.02 s (data.shortest_s)" in reasons["roll/tick.wav"]
    assert "roll/tick.wav" in {clip.clip_id for clip in open_path(root, shortest_s=0.01).clips}
    assert "it is not audio" in reasons["tap/text.wav"] and "convert it" in reasons["roll/song.m4a"]


def test_a_class_without_any_usable_file_is_left_out_and_named(tmp_path):
    root = write_classes(tmp_path / "drums")
    (root / "flam").mkdir()
    (root / "flam/a.wav").touch()
    found = open_path(root)
    assert found.classes == ("roll", "tap") and found.excluded[0].name == "flam/a.wav"
    assert "Class 'flam' has no usable clip: it is left out." in found.notes
    assert manifests.left_out(found).startswith("1 of 13 files is left out: flam/a.wav: the file is empty (0 bytes);")


def test_too_few_clips_of_a_class_leave_it_out_file_by_file(tmp_path):
    root = write_classes(tmp_path / "drums")
    write_classes(root, classes=("flam",), n=2)
    found = open_path(root)
    assert found.classes == ("roll", "tap")
    assert {e.name: e.kind for e in found.excluded} == {"flam/00.wav": "class", "flam/01.wav": "class"}
    assert "its class 'flam' has 2 clips, but 3 splits need at least 3" in found.excluded[0].reason
    assert any(note.startswith("Class 'flam' has 2 clips") for note in found.notes)


def test_where_less_than_two_classes_would_be_left_the_cause_is_named(tmp_path):
    root = write_classes(tmp_path / "drums", classes=("tap",))
    write_classes(root, classes=("flam",), n=2)
    with pytest.raises(DataError, match=r"Class 'flam' has 2 clips.*at least 3"):
        open_path(root)
    (root / "flam/00.wav").write_bytes(b"")
    (root / "flam/01.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"only one class \('tap'\).*flam/00.wav: the file is empty"):
        open_path(root)


def test_a_class_that_a_given_split_lacks_is_left_out_and_the_rest_stays(tmp_path):
    rows = table(tmp_path, labels=("tap", "roll", "flam"))
    for i, row in enumerate(rows):
        row["split"] = "train" if row["label"] == "flam" else ("train", "valid", "test")[i % 3]
    found = open_path(write_table(tmp_path / "clips.csv", rows))
    assert found.classes == ("roll", "tap") and len(found.excluded) == 6
    assert "has no clip in valid and test (6 clips in all)" in found.excluded[0].reason


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: root.mkdir(), "holds no folders"),
        (lambda root: write_wav(root / "a.wav"), "one folder for each class"),
        (lambda root: (root / "tap").mkdir(parents=True), "holds no audio files"),
        (lambda root: write_classes(root, classes=("tap",)), "only one class"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_with_a_hint(tmp_path, make, says):
    make(tmp_path / "drums")
    with pytest.raises(DataError, match=says):
        open_path(tmp_path / "drums")


def test_one_spelling_of_an_accented_class_is_one_class(tmp_path):
    write_classes(tmp_path / "drums", classes=("caf\u00e9", "cafe\u0301", "tap"), n=3)
    assert open_path(tmp_path / "drums").classes == ("caf\u00e9", "tap")


def test_clip_length_fits_95_percent_of_the_recordings(tmp_path):
    root = write_classes(tmp_path / "drums", n=50, seconds=1.2)
    write_wav(root / "tap/long.wav", seconds=6)
    found = open_path(root)
    assert found.clip_s == 1.5
    assert any(note.startswith("1 of 101 recordings is longer") for note in found.notes)
    assert any(note.startswith("100 of 101 recordings are shorter") for note in found.notes)


def test_clip_length_is_capped_at_ten_seconds_unless_asked_for(tmp_path):
    root = write_classes(tmp_path / "drums", n=4, seconds=12)
    assert open_path(root).clip_s == 10.0
    assert open_path(root, clip_s=11).clip_s == 11.0


def test_content_key_changes_with_a_file_and_not_with_the_split(tmp_path):
    root = write_classes(tmp_path / "drums")
    before = open_path(root).content_key
    assert open_path(root, split_seed=7).content_key == before
    write_wav(root / "tap/00.wav", seconds=0.6)
    assert open_path(root).content_key != before


def test_contents_follow_the_sounds_and_labels_and_neither_place_time_nor_name(tmp_path, workspace):
    root = write_classes(tmp_path / "drums")
    config = DataConfig(dataset=str(root))
    assert DataSet.open(config, workspace).manifest.contents == {}, "unknown before a scan, never guessed"
    before = DataSet.scan(config, workspace).manifest
    assert set(before.contents) == set(splits.SPLITS)
    shutil.copytree(root, tmp_path / "copy")  # with other times
    copy = DataSet.scan(DataConfig(dataset=str(tmp_path / "copy")), workspace).manifest
    assert manifests.contents(copy) == manifests.contents(before) and copy.content_key == before.content_key
    test = next(clip for clip in before.clips if clip.split == "test")
    stat = test.source.stat()
    sound = bytearray(test.source.read_bytes())
    sound[-3] ^= 1
    test.source.write_bytes(sound)
    os.utime(test.source, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same name, size and time of modification
    after = DataSet.scan(config, workspace).manifest
    assert {split for split in splits.SPLITS if after.contents[split] != before.contents[split]} == {"test"}
    assert after.content_key != before.content_key and after.fingerprint != before.fingerprint


def test_embedded_sets_have_contents_of_their_own():
    keys = [manifests.contents(manifests.open_dataset(DataConfig(dataset=name))) for name in ("micro", "tiny")]
    assert all(keys) and keys[0]["test"] != keys[1]["test"]
    other = manifests.contents(manifests.open_dataset(DataConfig(dataset="micro", clip_s=2.0)))
    assert other["test"] != keys[0]["test"] and other["clip_s"] == 2.0


# CSV


def table(tmp_path, *, n=6, players=0, extra=None, labels=("tap", "roll")):
    rows = []
    for label in labels:
        for i in range(n):
            write_wav(tmp_path / f"audio/{label}{i}.wav")
            row = {"path": f"audio/{label}{i}.wav", "label": label}
            row |= {"player": f"p{i % players}"} if players else {}
            rows.append(row | (extra or {}))
    return rows


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_paths_are_relative_to_the_file_and_other_columns_are_kept(tmp_path, delimiter):
    rows = table(tmp_path, extra={"mood": "calm"})
    found = open_path(write_table(tmp_path / "clips.csv", rows, delimiter))
    assert (found.name, len(found.clips), found.clips[0].columns) == ("clips", 12, {"mood": "calm"})
    assert found.clips[0].source == tmp_path / "audio/roll0.wav"


def test_csv_players_stay_whole_within_one_split(tmp_path):
    found = open_path(write_table(tmp_path / "clips.csv", table(tmp_path, n=20, players=10)))
    homes = {player: {c.split for c in found.clips if c.group == player} for player in {c.group for c in found.clips}}
    assert len(homes) == 10 and all(len(where) == 1 for where in homes.values())
    assert Counter(c.split for c in found.clips) == {"train": 28, "valid": 4, "test": 8}


def test_players_who_play_one_class_each_still_reach_every_split(tmp_path):
    rows = table(tmp_path, n=12)
    for i, row in enumerate(rows):
        row["player"] = f"p{i // 3}"  # four players a class, none plays both
    found = open_path(write_table(tmp_path / "clips.csv", rows))
    assert all(min(row.values()) >= 3 for row in found.counts.values())


def test_too_few_players_of_a_class_are_named_with_the_cure(tmp_path):
    with pytest.raises(DataError, match=r"Class 'roll' has no clip in .*6 clips by 2 players.*by different players"):
        open_path(write_table(tmp_path / "clips.csv", table(tmp_path, players=2)))


def test_csv_splits_are_taken_as_they_are_and_a_gap_is_named(tmp_path):
    rows = table(tmp_path)
    for i, row in enumerate(rows):
        row["split"] = ("Train", "validation", "TEST")[i % 3]
    path = write_table(tmp_path / "clips.csv", rows)
    assert open_path(path).counts["tap"] == {"train": 2, "valid": 2, "test": 2}
    for row in rows[:6]:
        row["split"] = "train"
    write_table(path, rows)
    with pytest.raises(DataError, match=r"Class 'tap' has no clip in valid and test"):
        open_path(path)


def test_a_player_in_train_and_test_is_noted(tmp_path):
    rows = table(tmp_path, players=1)
    for i, row in enumerate(rows):
        row["split"] = ("train", "valid", "test")[i % 3]
    notes = open_path(write_table(tmp_path / "clips.csv", rows)).notes
    assert any("familiar players" in note and "p0" in note for note in notes)


def test_csv_rows_without_file_or_label_are_excluded_by_line(tmp_path):
    rows = table(tmp_path)
    rows += [{"path": "audio/gone.wav", "label": "tap"}, {"path": "audio/tap0x.wav", "label": ""}]
    found = open_path(write_table(tmp_path / "clips.csv", rows))
    assert {e.name: e.reason for e in found.excluded} == {
        "audio/gone.wav": "there is no such file",
        "line 15": "it has no label",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("where,label\na.wav,x\n", "no column that names the file of each clip; it has where, label.*data.path_column"),
        ("path,kind\na.wav,x\n", "no column that names the class of each clip; it has path, kind.*data.label_column"),
        ("path,label,label\na.wav,x,y\n", "column 'label' twice"),
        ("path,label,split\na.wav,x,treno\n", "line 2: 'treno' is not a split"),
        ("path,label,split\na.wav,x,train\nb.wav,x,\n", "line 3: the split is empty"),
        ("path,label\na.wav,x\na.wav,y\n", "lines 2 and 3 name the same file"),
        ("path,label\na.wav,x\n./b/../a.wav,y\n", "same file 'a.wav', written './b/../a.wav' the second time"),
        ("path,label\na.wav,x,oops\n", "line 2: more values than columns"),
        ("path,label\n", "lists no clips"),
        ('path,label\n"a.wav,x\n', "unexpected end of data"),
    ],
)
def test_a_wrong_csv_is_refused_with_the_place_and_the_cure(tmp_path, text, says):
    path = tmp_path / "clips.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        open_path(path)


def test_a_csv_that_is_not_utf8_text_says_so(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_bytes(b"path,label\ncaf\xe9.wav,x\n")
    with pytest.raises(DataError, match="not UTF-8"):
        open_path(path)


def test_majority_baseline_is_the_share_of_trains_commonest_class(tmp_path):
    write_classes(tmp_path / "d/train", n=5)
    write_classes(tmp_path / "d/train", classes=("roll",), n=9)
    write_classes(tmp_path / "d/valid", n=1)
    write_classes(tmp_path / "d/test", n=2)
    write_classes(tmp_path / "d/test", classes=("tap",), n=6)
    assert manifests.majority_baseline(open_path(tmp_path / "d"), "test") == pytest.approx(2 / 8)


def test_sample_rates_that_differ_are_counted_to_the_last_file(tmp_path):
    for n, rate_hz in enumerate((8000, 8000, 11025, 16000, 22050, 44100, 48000, 37800, 8000, 8000, 8000, 8000)):
        for label in ("tap", "roll"):
            write_wav(tmp_path / label / f"{n:02d}.wav", rate_hz=rate_hz)
    note = next(note for note in open_path(tmp_path).notes if "Sample rates differ" in note)
    counts = [int(n) for n in re.findall(r"(\d+) at \d+ ", note)]
    assert sum(counts) == 24 and ", 6 at 3 others)" in note


@pytest.mark.parametrize("root", ["/", "/usr", "/proc/self", "/dev", "~", "/etc/.."])
def test_a_folder_of_the_system_is_refused_before_anything_below_it_is_listed(root, monkeypatch):
    monkeypatch.setattr(survey.os, "walk", None)  # would raise TypeError
    with pytest.raises(DataError, match=r"folder of the system or your home folder"):
        survey.look(Path(root).expanduser().resolve())


def test_a_tree_with_far_too_many_files_is_left_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "MOST_FILES", 3)
    (tmp_path / "tap").mkdir()
    for number in range(5):
        (tmp_path / "tap" / f"{number}.txt").touch()
    with pytest.raises(DataError, match=r"holds more than 3 files, up to .*tap"):
        survey.look(tmp_path)
