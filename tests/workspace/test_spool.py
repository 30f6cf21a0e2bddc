"""The spool: what the trainer wrote is read back whole, once, whatever the trainer died of."""

from __future__ import annotations

import errno
import json
import math
import resource

import pytest

from sousa_engine.core.config import RunConfig
from sousa_engine.core.records import Prediction, Progress
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace.spool import (
    SpoolWriter,
    end_of,
    read_batch,
    read_predictions,
    read_spool,
    write_predictions,
)


def test_what_the_trainer_writes_comes_back(tmp_path):
    path = tmp_path / "spool.jsonl"
    with SpoolWriter(path, clock_ms=lambda: 77) as spool:
        spool.facts({"weights_label": "pretrained: ast-mini", "versions": {"torch": "2"}})
        spool.progress(Progress(phase="training", done=1, total=9, epoch=1, max_epochs=2, eta_s=3.5))
        spool.metrics(1, {"train/loss": 3.5, "train/accuracy": None})
        spool.metrics(2, {"valid/accuracy": 0.25}, epoch=1, n=200)
        spool.progress(Progress(phase="training", done=2, total=9))
        spool.event("checkpoint", "Saved «last» at step 2.\nSecond line")
        spool.facts({"seed": 3})
    batch = read_batch(path, 0)
    assert [tuple(point) for point in batch.points] == [
        ("train/loss", 1, 3.5, None, None, 77),
        ("valid/accuracy", 2, 0.25, 1, 200, 77),
    ]
    assert batch.progress == Progress(phase="training", done=2, total=9)
    assert [(e.kind, e.message, e.at_ms) for e in batch.events] == [
        ("checkpoint", "Saved «last» at step 2.\nSecond line", 77)
    ]
    assert batch.facts == {"weights_label": "pretrained: ast-mini", "versions": {"torch": "2"}, "seed": 3}
    assert (batch.start, batch.end) == (0, path.stat().st_size)
    assert read_batch(path, batch.end).is_empty


def test_nan_and_infinity_survive_the_spool(tmp_path):
    path = tmp_path / "spool.jsonl"
    with SpoolWriter(path) as spool:
        spool.metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
        spool.facts({"best": math.nan})
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON: other tools read it too
    batch = read_batch(path, 0)
    values = {point.metric: point.value for point in batch.points}
    assert math.isnan(values["a"]) and values["b"] == math.inf and values["c"] == -math.inf
    assert batch.facts == {"best": "nan"}


def test_a_torn_last_line_is_left_for_later(tmp_path):
    path = tmp_path / "spool.jsonl"
    whole = b'{"k":"event","t":1,"kind":"a","message":"b"}\n'
    path.write_bytes(whole + b'{"k":"metrics","t":2,"st')
    entries, offset = read_spool(path, 0)
    assert len(entries) == 1 and offset == len(whole)
    with path.open("ab") as file:
        file.write(b'ep":1,"m":{"x":1}}\n')
    assert read_batch(path, offset).points[0].value == 1.0


def test_a_writer_after_a_killed_one_does_not_continue_its_torn_line(tmp_path):
    path = tmp_path / "spool.jsonl"
    with SpoolWriter(path) as spool:
        spool.metrics(1, {"x": 1})
    with path.open("ab") as file:
        file.write(b'{"k":"metrics","t":2,"st')
    with SpoolWriter(path) as spool:
        spool.metrics(2, {"x": 2})
    batch = read_batch(path, 0)
    assert [(point.step, point.value) for point in batch.points] == [(1, 1.0), (2, 2.0)]
    assert not batch.events


def test_an_unreadable_line_is_reported_and_the_rest_is_read(tmp_path):
    path = tmp_path / "spool.jsonl"
    good = b'{"k":"metrics","t":5,"step":1,"m":{"x":1}}\n'
    path.write_bytes(good + b"\0\0\0\r\0\n" + b'{"k":"metrics","t":5,"m":{"x":1}}\n' + b"[1]\n" + good)
    batch = read_batch(path, 0)
    assert len(batch.points) == 2
    assert [event.kind for event in batch.events] == ["unreadable"] * 3
    assert f"bytes of spool.jsonl at {len(good)}" in batch.events[0].message
    assert batch.end == path.stat().st_size


@pytest.mark.parametrize(
    "line",
    [
        b'{"k":"metrics","t":5,"step":"1","m":{"x":1}}',
        b'{"k":"metrics","t":5,"step":99999999999999999999,"m":{"x":1}}',
        b'{"k":"metrics","t":5,"step":1,"epoch":[],"m":{"x":1}}',
        b'{"k":"metrics","t":5,"step":1,"m":{"x":null}}',
        b'{"k":"metrics","t":5,"step":1,"m":{"x":NaN}}',
        b'{"k":"metrics","t":{},"step":1,"m":{"x":1}}',
        b'{"k":"progress","t":5,"phase":"training","done":1,"total":2,"eta_s":Infinity}',
        b'{"k":"progress","t":5,"colour":"red"}',
        b'{"k":"event","t":5,"kind":"x","message":{"not":"text"}}',
        b'{"k":"facts","t":5,"facts":7}',
        b'{"k":"facts","t":5,"facts":{"earlier":5}}',
        b'{"k":"facts","t":5,"facts":{"n":1e999}}',
        b'{"k":"facts","t":5,"facts":{"n":' + b"1" * 400 + b"}}",
        b'{"k":"metrics","t":5,"step":1,"m":{"x":' + b"1" * 400 + b"}}",
        b'{"k":"event","t":2305843009213693952,"kind":"x","message":"y"}',
        b'{"k":"progress","t":5,"phase":"training","done":"1","total":2}',
        b"[" * 100_000,
    ],
)
def test_no_line_however_odd_reaches_the_store_or_holds_up_the_run(workspace, line):
    with Store.open(workspace) as store:
        run = store.runs.enqueue(RunConfig())
        path = workspace.root / "spool.jsonl"
        path.write_bytes(line + b'\n{"k":"metrics","t":6,"step":2,"m":{"x":1}}\n')
        assert Ledger(store).ingest(run.id, read_batch(path, 0))
        assert store.metrics.curve(run.id, "x").steps == (2,)
        assert [event.kind for event in store.runs.events(run.id)].count("unreadable") == 1


def test_what_is_no_text_or_no_number_does_not_stop_the_trainer(workspace):
    path = workspace.root / "spool.jsonl"
    with SpoolWriter(path) as spool, Store.open(workspace) as store:
        spool.event("data", "cannot read \udcff.wav")  # a file name that is no UTF-8
        spool.progress(Progress(phase="training", done=0, total=9, eta_s=math.inf))
        run = store.runs.enqueue(RunConfig())
        assert Ledger(store).ingest(run.id, read_batch(path, 0))
        assert "cannot read ?.wav" in [event.message for event in store.runs.events(run.id)]
        assert store.runs.get(run.id).progress.eta_s is None
        with path.open("ab") as file:
            file.write(b'{"k":"event","t":1,"kind":"x","message":"\\ud800"}\n')
        assert Ledger(store).ingest(run.id, read_batch(path, Ledger(store).attempt(run.id).spool_offset))


@pytest.mark.parametrize("max_bytes", [64, 100, 4096])
def test_reading_in_small_pieces_gives_the_same_points(tmp_path, max_bytes):
    path = tmp_path / "spool.jsonl"
    with SpoolWriter(path) as spool:
        for step in range(1, 301):
            spool.metrics(step, {"x": step / 7})
    points, offset = [], 0
    while not (batch := read_batch(path, offset, max_bytes)).is_empty:
        points += batch.points
        offset = batch.end
    if max_bytes > 64:  # 64 bytes hold no whole line: such a block is reported, never waited on for ever
        assert [(point.step, point.value) for point in points] == [(step, step / 7) for step in range(1, 301)]
    assert offset == path.stat().st_size


def test_a_full_disk_leaves_no_half_line_behind(tmp_path):
    path = tmp_path / "spool.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SpoolWriter(path) as spool:
        spool.metrics(1, {"x": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))  # room for part of a line
        try:
            with pytest.raises(OSError):
                spool.metrics(2, {"x": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        spool.metrics(3, {"x": 3})
    batch = read_batch(path, 0)
    assert [point.step for point in batch.points] == [1, 3]
    assert not batch.events


def test_a_missing_spool_has_nothing_to_say(tmp_path):
    assert read_batch(tmp_path / "none.jsonl", 0).is_empty


def test_predictions_come_back_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    rows = [
        Prediction(
            clip_id=f"c{i}", split="test", label="flam\u2028tap", predicted="drag", probability=0.5, label_probability=0
        )
        for i in range(3)
    ]
    write_predictions(path, rows)
    assert list(read_predictions(path)) == rows
    good = path.read_text().partition("\n")[0] + "\n"
    write_predictions(path, [])
    assert read_predictions(path) == ()
    assert read_predictions(tmp_path / "none") == ()
    path.write_text('{"clip_id": "c0"}\n')
    with pytest.raises(ValueError, match="Line 1 of"):
        read_predictions(path)
    path.write_text(good + good.replace('"c0"', "17"))
    with pytest.raises(ValueError, match="Line 2 of"):
        read_predictions(path)


def test_predictions_that_find_no_room_leave_nothing_behind(tmp_path):
    one = Prediction(clip_id="a", split="test", label="x", predicted="x", probability=0.5, label_probability=0.5)

    def until_the_disk_is_full():
        yield one
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_predictions(tmp_path / "predictions.jsonl", until_the_disk_is_full())
    assert list(tmp_path.iterdir()) == []


def test_a_spool_ends_where_the_next_writer_goes_on(tmp_path):
    path = tmp_path / "spool.jsonl"
    assert end_of(path) == 0
    for written in (b"", b"torn", b'{"k":"a"}\n', b'{"k":"a"}\n{"k":', b'{"k":"a"}\n' + bytes(100_000)):
        path.write_bytes(written)
        end = end_of(path)
        SpoolWriter(path).close()
        assert path.stat().st_size == end == written.rfind(b"\n") + 1


def test_a_line_longer_than_a_batch_is_read_whole(tmp_path):
    path = tmp_path / "spool.jsonl"
    with SpoolWriter(path) as spool:
        spool.metrics(1, {f"update/{i}": 0.5 for i in range(200)})
        spool.metrics(2, {"x": 1.0})
    batch = read_batch(path, 0, max_bytes=100)
    assert len(batch.points) == 200 and not batch.events
    assert read_batch(path, batch.end, max_bytes=100).points[0].step == 2
