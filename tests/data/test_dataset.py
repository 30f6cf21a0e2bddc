"""A data set is opened once: its folder is listed once, and each file is looked at once."""

from __future__ import annotations

from collections import Counter

import bad_audio
import pytest

from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError
from sousa_engine.data import headers, survey
from sousa_engine.data.dataset import DataSet
from sousa_engine.runs import preflight, prepare


@pytest.fixture
def visits(monkeypatch):
    """How often each folder is listed and each file is looked at by this process."""
    found: Counter = Counter()

    def count(module, name):
        call = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path: found.update([path]) or call(path))

    count(survey, "look")
    count(headers, "file_facts")
    return found


def test_a_preflight_lists_the_folder_once_and_looks_at_each_file_once(drums, workspace, visits):
    draft = {"data": {"dataset": str(drums)}, "model": {"weights": "random"}}
    found = preflight.preflight(prepare.prepare(draft).config, workspace)
    assert sum(found.clips.values()) == 12 and len(visits) == 13
    assert set(visits.values()) == {1}


def test_a_data_set_that_was_opened_is_not_opened_again_by_preflight(drums, workspace, visits):
    config = prepare.prepare({"data": {"dataset": str(drums)}, "model": {"weights": "random"}}).config
    data = DataSet.open(config.data, workspace)
    visits.clear()
    assert preflight.preflight(config, workspace, data).clips == data.manifest.sizes
    assert not visits


def test_a_data_set_stays_as_it_was_when_it_was_opened(drums, workspace):
    data = DataSet.open(DataConfig(dataset=str(drums)), workspace)
    (drums / "tap" / "0.wav").unlink()
    bad_audio.write(drums / "tap" / "new.wav", 99)
    assert "tap/0.wav" in data.manifest.by_id and "tap/new.wav" not in data.manifest.by_id
    assert data.findings.usable == len(data.manifest.clips) == 12


def test_data_that_no_run_can_use_still_has_findings(drums, workspace):
    for path in (drums / "tap").iterdir():
        path.write_bytes(b"")
    data = DataSet.open(DataConfig(dataset=str(drums)), workspace)
    with pytest.raises(DataError, match=r"only one class \('roll'\)"):
        _ = data.manifest
    assert "only one class ('roll')" in data.findings.refusal
    assert [one.kind for one in data.findings.findings] == ["data-set", *["empty"] * 6]


def test_a_scan_and_a_later_opening_leave_out_the_same_files(drums, workspace):
    (drums / "tap" / "0.wav").write_bytes((drums / "tap" / "0.wav").read_bytes()[:20_000])
    config = DataConfig(dataset=str(drums))
    assert len(DataSet.open(config, workspace).manifest.clips) == 12  # the header of a truncated file is intact
    scanned = DataSet.scan(config, workspace)
    assert [one.name for one in scanned.manifest.excluded] == ["tap/0.wav"]
    assert DataSet.open(config, workspace) == scanned
