"""What stands in the place of a run's file, in a folder that was copied or unpacked, is read as one or not at all."""

from __future__ import annotations

import json
import os

import pytest

from sousa_engine.workspace import run_files, spool

KEEPER = {"nonce": "n", "pid": 1, "trainer_pid": 2, "started_ms": 5, "steps": [{"at_ms": 6, "step": "started"}]}
EXIT = {"nonce": "n", "exit_code": 0, "signal": None, "started_ms": 5, "ended_ms": 9, "steps": []}
ODD = [
    lambda place: os.mkfifo(place),
    lambda place: place.mkdir(),
    lambda place: place.symlink_to("/dev/zero"),
    lambda place: place.write_text("[" * 100_000),
    lambda place: place.write_text('{"started_ms": ' + "1" * 5000 + "}"),
    lambda place: place.write_bytes(b"\xff\xfe{}"),
    lambda place: None,
]


@pytest.mark.parametrize("make", ODD)
def test_anything_but_a_file_with_a_note_is_no_note(tmp_path, make):
    place = tmp_path / "note.json"
    make(place)
    assert run_files.read_json(place) is None
    assert run_files.read_keeper(place) is run_files.read_exit(place) is run_files.read_result(place) is None


@pytest.mark.parametrize("make", ODD[:3])
def test_anything_but_a_file_is_no_spool_no_log_and_no_predictions(tmp_path, make):
    place = tmp_path / "spool.jsonl"
    make(place)
    for read in (spool.end_of, lambda path: spool.read_spool(path, 0), lambda path: run_files.tail(path, 3)):
        with pytest.raises(run_files.Irregular):
            read(place)
    with pytest.raises(ValueError, match="not a regular file"):
        spool.read_predictions(place)


@pytest.mark.parametrize(
    ("read", "whole"), [(run_files.read_keeper, KEEPER), (run_files.read_exit, EXIT)], ids=["keeper", "exit"]
)
def test_a_note_is_whole_or_none(tmp_path, read, whole):
    place = tmp_path / "note.json"
    place.write_text(json.dumps(whole))
    assert {key: value for key, value in read(place).items() if key in whole} == whole
    for key, value in [("nonce", 7), ("started_ms", None), ("started_ms", 10**400), ("steps", 5), ("steps", [{}])]:
        place.write_text(json.dumps({**whole, key: value}))
        assert read(place) is None, (key, value)


def test_a_file_that_is_far_too_long_is_not_read(tmp_path):
    place = tmp_path / "config.json"
    with place.open("wb") as file:
        file.truncate(run_files.LONGEST_JSON + 1)
    assert run_files.read_json(place) is None
