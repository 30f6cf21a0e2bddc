"""What a folder is read as: public layouts without conversion, and refusals that name the reading that would fit."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError
from sousa_engine.data import levels, splits, survey, tables
from sousa_engine.data import manifest as manifests

CLASSES = ("drag", "flam", "roll")


def wav(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(1600, dtype=np.float32), 16_000, format="WAV" if path.suffix != ".flac" else "FLAC")


def table(path: Path, header: str, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split())
        writer.writerows(rows)


def opened(path: Path, **fields):
    return manifests.open_dataset(DataConfig(dataset=str(path), **fields))


def summary(path: Path, **fields):
    found = opened(path, **fields)
    return found.classes, found.sizes


def esc50(root: Path) -> None:
    rows = []
    for target, label in enumerate(CLASSES):
        for fold in range(1, 6):
            for take in "AB":
                name = f"{fold}-{1000 + target}-{take}-{target}.wav"
                wav(root / "audio" / name)
                rows.append([name, fold, target, label, False, 7, take])
    table(root / "meta" / "esc50.csv", "filename fold target category esc10 src_file take", rows)


def us8k(root: Path) -> None:
    rows = []
    for number, label in enumerate(CLASSES):
        for fold in range(1, 11):
            name = f"{1000 + number}-{number}-0-{fold}.wav"
            wav(root / "audio" / f"fold{fold}" / name)
            rows.append([name, 1000 + number, 3.5, 7.5, 1, fold, number, label])
    table(root / "metadata" / "UrbanSound8K.csv", "slice_file_name fsID start end salience fold classID class", rows)


def speech_commands(root: Path) -> None:
    lists: dict[str, list[str]] = {"validation": [], "testing": []}
    for label in CLASSES:
        for speaker in range(6):
            name = f"{label}/{speaker:08x}_nohash_0.wav"
            wav(root / name)
            if speaker > 3:
                lists[("validation", "testing")[speaker - 4]].append(name)
    for kind, names in lists.items():
        (root / f"{kind}_list.txt").write_text("\n".join(names) + "\n")
    wav(root / "_background_noise_" / "pink.wav")


def gtzan(root: Path) -> None:
    for label in CLASSES:
        for number in range(6):
            wav(root / "genres_original" / label / f"{label}.{number:05d}.wav")
            image = root / "images_original" / label / f"{label}{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    table(root / "features_3_sec.csv", "filename length label", [[f"{c}.00000.0.wav", 66149, c] for c in CLASSES])


def sousa(root: Path) -> None:
    rows = []
    for label in CLASSES:
        for profile in range(8):
            name = f"{label}_{profile}"
            wav(root / "audio" / label / f"{name}.flac")
            rows.append([name, f"p{profile}", label, 100, ("train", "val", "test")[max(0, profile - 5)]])
    table(root / "metadata.csv", "sample_id profile_id rudiment_slug tempo_bpm split", rows)


def audiofolder(root: Path) -> None:
    """One table for each split, in JSON lines."""
    for split in ("train", "validation", "test"):
        lines = []
        for label in CLASSES:
            for number in range(2):
                wav(root / split / f"{label}{number}.wav")
                lines.append(json.dumps({"file_name": f"{label}{number}.wav", "label": label}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines))


def flat_splits(root: Path) -> None:
    rows = []
    for split in ("train", "valid", "test"):
        for label in CLASSES:
            wav(root / split / f"{label}.wav")
            rows.append([f"{split}\\{label}.wav", label])
    table(root / "metadata.csv", "file_name label", rows)


def suffixed_splits(root: Path) -> None:
    for split in ("x_train", "x_valid", "x_test"):
        for label in CLASSES:
            wav(root / split / label / "a.wav")


def splits_inside(root: Path) -> None:
    for label in CLASSES:
        for split in ("train", "val", "eval"):
            wav(root / label / split / "a.wav")


def macosx(root: Path) -> None:
    for split in ("train", "dev", "test"):
        for label in CLASSES:
            wav(root / split / label / "a.wav")
    wav(root / "__MACOSX" / "train" / "drag" / "b.wav")
    (root / "metadata").mkdir()


LAYOUTS = {
    esc50: {"train": 18, "valid": 6, "test": 6},
    us8k: {"train": 21, "valid": 3, "test": 6},
    speech_commands: {"train": 12, "valid": 3, "test": 3},
    gtzan: {"train": 12, "valid": 3, "test": 3},
    sousa: {"train": 18, "valid": 3, "test": 3},
    audiofolder: {"train": 6, "valid": 6, "test": 6},
    flat_splits: {"train": 3, "valid": 3, "test": 3},
    suffixed_splits: {"train": 3, "valid": 3, "test": 3},
    splits_inside: {"train": 3, "valid": 3, "test": 3},
    macosx: {"train": 3, "valid": 3, "test": 3},
}


@pytest.mark.parametrize(("make", "sizes"), LAYOUTS.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_a_public_layout_is_read_with_its_classes_and_its_splits(tmp_path, make, sizes):
    make(tmp_path / "set")
    assert summary(tmp_path / "set") == (CLASSES, sizes)


@pytest.mark.parametrize(("make", "inside"), [(esc50, "audio"), (esc50, "meta/esc50.csv"), (sousa, "audio")])
def test_the_folder_of_the_files_and_the_table_give_what_the_whole_gives(tmp_path, make, inside):
    make(tmp_path / "set")
    assert summary(tmp_path / "set" / inside) == summary(tmp_path / "set")


@pytest.mark.parametrize("make", [esc50, us8k])
def test_folds_are_kept_whole(tmp_path, make):
    make(tmp_path / "set")
    found = opened(tmp_path / "set")
    homes = {fold: {c.split for c in found.clips if c.group == fold} for fold in {c.group for c in found.clips}}
    assert len(homes) >= 5 and all(len(where) == 1 for where in homes.values())
    assert "groups from the column fold, kept whole" in found.notes[0]


def test_the_reading_says_itself_in_fields_that_give_the_same(tmp_path):
    for make in (esc50, speech_commands, suffixed_splits):
        root = tmp_path / make.__name__
        make(root)
        reading = manifests.list_files(DataConfig(dataset=str(root))).reading
        assert reading
        fields = {name.removeprefix("data."): value for name, value in reading.fields.items()}
        assert summary(root, **fields) == summary(root)


@pytest.mark.parametrize(
    ("folders", "said", "level"),
    [
        (["fold1/drag", "fold1/flam", "fold2/drag", "fold2/flam"], "look like folds, not like classes", 2),
        (["Actor_01/calm", "Actor_01/sad", "Actor_02/calm", "Actor_02/sad"], "look like actors", 2),
        (["Actor_01", "Actor_02", "Actor_03"], "If a table lists the labels", None),
        (["ann/drag", "ann/flam", "bob/drag", "bob/flam"], r"data.level=1 for ann, bob, or data.level=2 for drag", 2),
        (["train/drag", "test/drag", "drag/a", "flam/a"], "mixes split folders .* with class folders", None),
    ],
)
def test_an_implausible_reading_is_refused_with_the_one_that_would_fit(tmp_path, folders, said, level):
    for folder in folders:
        for number in range(4):
            wav(tmp_path / "set" / folder / f"{number}.wav")
    with pytest.raises(levels.Unclear, match=said) as refused:
        opened(tmp_path / "set")
    assert refused.value.fields == ({"data.level": level} if level else {})
    if level:
        found = opened(tmp_path / "set", level=level, test_fraction=0.3, valid_fraction=0.3, group_column="none")
        assert found.classes == tuple(sorted({folder.split("/")[1] for folder in folders}))


def test_numbered_classes_and_digits_are_classes(tmp_path):
    for names in (["0", "1", "2"], ["class1", "class2"], ["c0", "c1"], ["5stroke", "7stroke"]):
        assert levels.read("x", [(name,) for name in names]).classes == 1


def test_players_below_the_classes_are_groups_and_other_folders_are_not():
    players = [(label, f"player{n}") for label in CLASSES for n in range(4)]
    assert levels.read("x", players).group == 2
    assert levels.read("x", [(label, f"{label}-{n}") for label in CLASSES for n in range(4)]).group == 0


def test_fields_override_the_reading(tmp_path):
    esc50(tmp_path / "set")
    assert opened(tmp_path / "set", label_column="target").classes == ("0", "1", "2")
    assert not any(clip.group for clip in opened(tmp_path / "set", group_column="none").clips)
    with pytest.raises(DataError, match=r"has no column 'categry' \(data.label_column\).*Did you mean 'category'"):
        opened(tmp_path / "set" / "meta" / "esc50.csv", label_column="categry")
    with pytest.raises(DataError, match=r"no table 'meta/other.csv'"):
        opened(tmp_path / "set", table="meta/other.csv")
    with pytest.raises(DataError, match=r"no folders of classes.*meta/esc50.csv|only one class|holds 30 audio files"):
        opened(tmp_path / "set", table="none")


def test_a_table_of_something_else_changes_nothing(tmp_path):
    for label in CLASSES:
        for number in range(4):
            wav(tmp_path / "set" / label / f"{number}.wav")
    table(tmp_path / "set" / "notes.csv", "file label", [["elsewhere.wav", "x"]])
    (tmp_path / "set" / "broken.csv").write_bytes(b"\xff\xfe\x00")
    assert opened(tmp_path / "set").classes == CLASSES


def test_one_file_under_two_names_is_one_file(tmp_path):
    wav(tmp_path / "a.wav")
    (tmp_path / "b.wav").symlink_to("a.wav")
    table(tmp_path / "clips.csv", "path label", [["a.wav", "x"], ["b.wav", "y"]])
    with pytest.raises(DataError, match=r"lines 2 and 3 name the same file 'a\.wav', written 'b\.wav'"):
        opened(tmp_path / "clips.csv")


def test_links_in_circles_are_reported_and_not_followed(tmp_path):
    for label in CLASSES:
        for number in range(4):
            wav(tmp_path / "set" / label / f"{number}.wav")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "drag" / "up").symlink_to(tmp_path / "set")
    outside = tmp_path / "outside"
    for number in range(4):
        wav(outside / f"{number}.wav")
    (tmp_path / "set" / "swiss").symlink_to(outside)
    found = opened(tmp_path / "set")
    assert found.classes == (*CLASSES, "swiss") and len(found.clips) == 16


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["x_train", "x_test"], {"x_train": "train", "x_test": "test"}),
        (["train_data", "test_data"], {"train_data": "train", "test_data": "test"}),
        (["FSD50K.dev_audio", "FSD50K.eval_audio"], {"FSD50K.dev_audio": "train", "FSD50K.eval_audio": "test"}),
        (["Train", "VAL", "Evaluation"], {"Train": "train", "VAL": "valid", "Evaluation": "test"}),
        (["train", "flam"], {}),
        (["test_tone", "train_horn"], {}),
        (["test"], {}),
        ([], {}),
    ],
)
def test_folders_of_splits_are_told_from_folders_of_classes(names, found):
    assert splits.split_names(names) == found


def test_a_table_in_any_usual_form_is_read_alike(tmp_path):
    import pandas

    rows = [{"Path": "a b.wav", "Label": "x"}, {"Path": "ü.wav", "Label": ""}]
    plain = "Path,Label\na b.wav,x\nü.wav,\n"
    (tmp_path / "comma.csv").write_text(plain)
    (tmp_path / "semicolon.csv").write_text("\ufeff" + plain.replace(",", ";"), encoding="utf-8")
    (tmp_path / "wide.csv").write_text(plain.replace(",", "\t"), encoding="utf-16")
    (tmp_path / "tab.tsv").write_text(plain.replace(",", "\t"))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pandas.DataFrame(rows).to_parquet(tmp_path / "frame.parquet")
    for path in tables.in_folder(tmp_path):
        read = tables.read(path)
        assert (read.columns, list(map(dict, read.rows))) == (("Path", "Label"), rows), path.name
        assert (read.column("path"), read.column("label"), read.column("split")) == ("Path", "Label", "")


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("a.jsonl", b'{"file_name": "a"}\n[1]\n', "line 2: each line must be an object"),
        ("a.jsonl", b'{"file_name"\n', "line 1: this is not JSON"),
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.csv", b"path,label\n\0", "not a text file"),
    ],
)
def test_a_table_that_cannot_be_read_says_where(tmp_path, name, raw, said):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=said):
        tables.read(tmp_path / name)


def test_what_is_no_regular_file_is_no_table_and_no_list(tmp_path):
    for label in CLASSES:
        for number in range(4):
            wav(tmp_path / "set" / label / f"{number}.wav")
    for name in ("metadata.csv", "validation_list.txt"):
        os.mkfifo(tmp_path / "set" / name)  # reading it would wait for ever
    assert opened(tmp_path / "set").classes == CLASSES
    with pytest.raises(DataError, match="is not a regular file"):
        tables.read(tmp_path / "set" / "metadata.csv")


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    import pandas

    pandas.DataFrame({"path": ["a.wav"] * 2000, "label": ["x"] * 2000}).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(tables, "MOST_ROWS", 1000)
    with pytest.raises(DataError, match="unpacks to 2,000 rows"):
        tables.read(tmp_path / "a.parquet")


def test_several_labels_a_clip_are_refused_and_never_made_classes(tmp_path):
    rows = []
    for number, labels in enumerate(("Bark", "Bark,Dog", "Dog", "Rain")):
        wav(tmp_path / "FSD50K.dev_audio" / f"{number}.wav")
        rows.append([number, labels, "train"])
    table(tmp_path / "FSD50K.ground_truth" / "dev.csv", "fname labels split", rows)
    with pytest.raises(
        DataError, match=r"dev.csv: the column 'labels' holds several labels for a clip, such as 'Bark,Dog'"
    ):
        opened(tmp_path)


def test_helpers_are_no_classes_and_are_said(tmp_path):
    speech_commands(tmp_path / "set")
    assert survey.look(tmp_path / "set").helpers == {"_background_noise_": 1}
    assert any("_background_noise_ is no class" in note for note in opened(tmp_path / "set").notes)
