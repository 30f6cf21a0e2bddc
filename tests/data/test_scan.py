"""The scan: every bad file by name and reason, whatever a decoder does; every odd label; what is kept."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import bad_audio
import pytest
from click.testing import CliRunner

from sousa_engine.cli.main import main
from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError, WorkspaceError
from sousa_engine.data import decode, findings, headers, scan
from sousa_engine.data import manifest as manifests
from sousa_engine.data.dataset import DataSet
from sousa_engine.runs import preflight, prepare
from sousa_engine.workspace import Workspace, intake


def data(root, **more) -> DataConfig:
    return DataConfig(dataset=str(root), **more)


def scanned(root, workspace, **more) -> findings.Findings:
    return DataSet.scan(data(root, **more), workspace).findings


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """The folder of everything, what a scan says of it, and the workspace that remembers."""
    workspace = Workspace(root=tmp_path_factory.mktemp("workspace"))
    root = bad_audio.write_all(workspace.root / "bad")
    return root, scanned(root, workspace), workspace


# Files


def test_what_is_passed_over_is_counted_by_kind_with_a_few_names(drums, sousa):
    plain = sousa(drums).stdout
    assert "passed over" not in plain
    for name in ("notes.txt", "roll/cover.jpg", "roll/deep/a.mid", "roll/deep/b.mid", "roll/.DS_Store", ".git/x.wav"):
        (drums / name).parent.mkdir(parents=True, exist_ok=True)
        (drums / name).write_bytes(b"x")
    (drums / "tap" / ".old").mkdir()
    shutil.copy(drums / "tap" / "0.wav", drums / "loose.wav")
    shutil.copy(drums / "tap" / "0.wav", drums / "tap" / "._0.wav")
    said = sousa(drums).stdout
    assert said.splitlines()[-1] == (
        "passed over: 4 hidden (.git/, roll/.DS_Store, tap/.old/, ...), "
        "4 not audio by suffix (notes.txt, roll/cover.jpg, roll/deep/a.mid, ...), "
        "1 audio outside of the class folders (loose.wav)"
    )
    assert said.splitlines()[0] == plain.splitlines()[0]  # what is used is what it was
    told = json.loads(sousa(drums, "--json").stdout)
    assert told["passed_over"][0] == {"kind": "hidden", "count": 4, "names": [".git/", "roll/.DS_Store", "tap/.old/"]}
    assert [(one["kind"], one["count"]) for one in told["passed_over"][1:]] == [("not-audio", 4), ("beside", 1)]


def test_audio_beside_the_classes_of_a_split_folder_is_passed_over_in_words(tmp_path, workspace):
    for split in ("train", "valid", "test"):
        for i, label in enumerate(("roll", "tap")):
            bad_audio.write(tmp_path / "sets" / split / label / "0.wav", 10 * i)
    bad_audio.write(tmp_path / "sets" / "train" / "stray.wav", 3)
    (one,) = scanned(tmp_path / "sets", workspace).passed_over
    assert (one.kind, one.count, one.names) == ("beside", 1, ("train/stray.wav",))


@pytest.mark.parametrize("name", bad_audio.EXPECTED)
def test_a_bad_file_is_listed_with_its_reason(bad, name):
    level, kind, part = bad_audio.EXPECTED[name]
    found = [one for one in bad[1].findings if one.name == name and one.kind == kind]
    assert [one.level for one in found] == [level] and part in found[0].reason


def test_nothing_else_is_listed_and_the_rest_is_used(bad):
    found = bad[1]
    expected = {(name, kind) for name, (_, kind, _) in bad_audio.EXPECTED.items()}
    assert {(one.name, one.kind) for one in found.findings} == expected | {(bad_audio.ALSO_SILENT, "silent")}
    errors = sum(level == "error" for level, _, _ in bad_audio.EXPECTED.values())
    warnings = len(bad_audio.EXPECTED) - errors
    assert (found.files, found.scanned) == (2 * bad_audio.GOOD + errors + warnings,) * 2
    assert (found.usable, found.classes, found.refusal) == (2 * bad_audio.GOOD + warnings, 2, "")


def test_every_kind_has_a_name_and_every_reason_is_one_clause(bad):
    for one in bad[1].findings:
        assert findings.KINDS[one.kind]
        assert one.reason[0].islower() or one.reason[0].isdigit()
        assert not one.reason.endswith(".") and "\n" not in one.reason


def test_a_file_without_permission_is_listed_and_not_remembered(drums, workspace, monkeypatch):
    forbidden = drums / "tap" / "3.wav"
    access = os.access
    monkeypatch.setattr(headers.os, "access", lambda path, mode: path != forbidden and access(path, mode))
    (found,) = scanned(drums, workspace).findings
    assert (found.name, found.kind) == ("tap/3.wav", "permission") and "may not be read (mode 644)" in found.reason
    monkeypatch.undo()
    assert scanned(drums, workspace).findings == ()


def test_a_link_that_leads_back_to_itself_beside_the_classes_is_no_crash(drums, workspace):
    (drums / "loop").symlink_to("loop")
    assert scanned(drums, workspace).usable == 12


def test_a_header_alone_is_not_taken_for_a_scan(drums, workspace):
    """The header of a truncated file is fine: before the scan it counts as usable and as not yet decoded."""
    path = drums / "tap" / "0.wav"
    path.write_bytes(path.read_bytes()[:20_000])
    before = DataSet.open(data(drums), workspace).findings
    assert (before.files, before.scanned, before.usable, before.findings) == (12, 0, 12, ())
    after = scanned(drums, workspace)
    assert (after.scanned, after.usable) == (12, 11) and after.findings[0].kind == "truncated"


def test_an_embedded_set_needs_no_scan(workspace):
    assert scan.scan(DataConfig(dataset="micro"), workspace) == {}
    found = DataSet.open(DataConfig(dataset="micro"), workspace).findings
    assert (found.files, found.scanned, found.findings) == (160, 160, ()) and not workspace.cache.exists()


# Decoders that cannot be trusted

WORKER = """
import os, signal
from pathlib import Path
from sousa_engine.data import decode

decode.cpu_limit_s = lambda size: 1
usual = decode.examine

def answer(path):
    if path.name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    while path.name.startswith("loop"):
        pass
    if path.name.startswith("sleep"):
        signal.pause()
    if path.name.startswith("once") and not (seen := path.with_suffix(".seen")).exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    decode.examine = (lambda path: bytearray(3 * 2**30)) if path.name.startswith("huge") else usual
    return decode.decode(path)

decode.serve(answer)
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_a_file_that_kills_its_worker_is_named_and_the_scan_continues(tmp_path, workers):
    names = ["a", "crash", "b", "loop", "sleep", "once", "huge", "c", "d"]
    paths = [tmp_path / f"{name}.wav" for name in names]
    for seed, path in enumerate(paths):
        bad_audio.write(path, seed)
    command = (sys.executable, "-c", WORKER)
    with (tmp_path / "sleep.wav").open("ab") as file:
        file.write(bytes(2))
    asleep = (tmp_path / "sleep.wav").stat().st_size

    def wall_s(size: int) -> float:
        """Short for the one file of that size: all others end by themselves, however slow the machine."""
        return 2.0 if size == asleep else 300.0

    found = dict(scan.judge(paths, workers, command=command, wall_s=wall_s))
    assert set(found) == set(paths)
    kinds = {path.stem: one.kind for path, one in found.items() if one and one.error}
    assert kinds == {"crash": "crash", "loop": "time", "sleep": "time", "huge": "memory"}
    reasons = {path.stem: one.error for path, one in found.items() if one}
    assert "SIGSEGV" in reasons["crash"] and "of processor time" in reasons["loop"]
    assert "did not finish within 2 s" in reasons["sleep"] and "2 GiB" in reasons["huge"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed in /proc")
def test_no_worker_survives_an_interrupted_scan(drums):
    before = _children()  # of other tests of this process
    judged = scan.judge(sorted(drums.rglob("*.wav")), 2)
    next(judged)
    children = _children() - before
    assert children
    judged.close()
    assert not _children() & children


def _children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def test_a_worker_that_cannot_start_is_said_and_blames_no_file(drums):
    command = (sys.executable, "-c", "raise SystemExit('no decoder here')")
    with pytest.raises(WorkspaceError, match=r"No process can be started to decode files: no decoder here\."):
        list(scan.judge(sorted(drums.rglob("*.wav")), command=command))


def test_a_header_that_kills_its_reader_takes_no_page_with_it(drums, workspace, monkeypatch):
    (drums / "tap" / "crash.wav").write_bytes((drums / "tap" / "0.wav").read_bytes())
    monkeypatch.setattr(scan, "WORKER", (sys.executable, "-c", WORKER))
    found = DataSet.open(data(drums), workspace).manifest
    assert len(found.clips) == 12 and [e.name for e in found.excluded] == ["tap/crash.wav"]


# What is kept


def asked(root, workspace, **more) -> int:
    """How many files a scan decodes."""
    told: list[int] = []
    scan.scan(data(root), workspace, tell=lambda doing, done, total: told.append(total or 0), **more)
    return told[0]


def test_a_second_scan_decodes_only_what_changed(drums, workspace):
    assert (asked(drums, workspace), asked(drums, workspace)) == (12, 0)
    bad_audio.write(drums / "tap" / "0.wav", 77)
    bad_audio.write(drums / "tap" / "new.wav", 78)
    os.utime(drums / "roll" / "0.wav", ns=(1, 1))
    assert asked(drums, workspace) == 3
    assert asked(drums, workspace, fresh=True) == 13


def test_an_interrupted_scan_continues_where_it_stopped(drums, workspace):
    def tell(doing, done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan.scan(data(drums), workspace, tell=tell)
    doing = scan.look(data(drums), workspace)
    assert doing is not None and not doing.is_running and doing.error == intake.STOPPED
    assert asked(drums, workspace) == 7
    assert scan.look(data(drums), workspace) is None


def test_half_a_line_of_a_killed_scan_costs_that_file_alone(drums, workspace):
    scan.scan(data(drums), workspace)
    (kept,) = scan.folder_of(data(drums), workspace).glob("verdicts.*")
    kept.write_bytes(kept.read_bytes()[:-20])
    assert asked(drums, workspace) == 1
    assert (len(scan.cached(data(drums), workspace)), asked(drums, workspace)) == (12, 0)


def test_what_is_no_data_set_leaves_no_folder(tmp_path, workspace):
    with pytest.raises(DataError, match="no folder or file"):
        scan.scan(data(tmp_path / "nothing"), workspace)
    assert not workspace.cache.exists()


def test_training_data_is_what_the_scan_left(bad):
    root, found, workspace = bad
    opened = DataSet.open(data(root), workspace).manifest
    assert len(opened.clips) == found.usable
    assert {e.name for e in opened.excluded} == {one.name for one in found.findings if one.level == "error"}
    total, out = len(opened.clips) + len(opened.excluded), len(opened.excluded)
    assert manifests.left_out(opened).startswith(f"{out} of {total} files are left out: ")


# Labels


def labelled(tmp_path, *labels):
    """A table of three clips a label, each in a split of its own."""
    lines = ["path,label,split"]
    for i, label in enumerate(labels):
        for at, split in enumerate(("train", "valid", "test")):
            bad_audio.write(tmp_path / f"{i}-{at}.wav", 10 * i + at)
            lines.append(f'{i}-{at}.wav,"{label}",{split}')
    (tmp_path / "clips.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "clips.csv"


@pytest.mark.parametrize(
    ("label", "part"),
    [
        ("\N{DRUM WITH DRUMSTICKS}", "U+1F941"),
        ("תוף", "right to left"),
        ("a/b", "'/'"),
        ("..", "'..'"),
        ("<script>alert(1)</script>", "'<'"),
        ("=1+1", "'='"),
        ("fl\u202eam", "U+202E"),
    ],
)
def test_an_unusual_label_is_listed_and_used(tmp_path, workspace, label, part):
    path = labelled(tmp_path, "tap", label)
    found = scanned(path, workspace)
    assert [(one.level, one.kind, one.name) for one in found.findings] == [("warning", "label", repr(label))]
    assert part in found.findings[0].reason
    assert set(DataSet.open(data(path), workspace).manifest.classes) == {"tap", label}


@pytest.mark.parametrize("label", ["flam", "Single Stroke Roll", "flam_tap-2", "caf\u00e9", "鼓", "C#"])
def test_an_ordinary_label_is_not_listed(tmp_path, workspace, label):
    assert scanned(labelled(tmp_path, "tap", label), workspace).findings == ()


def test_twins_of_unicode_are_one_class_and_both_spellings_are_named(tmp_path, workspace):
    one, two = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    found = scanned(labelled(tmp_path, "tap", one, two), workspace)
    (twins,) = found.findings
    assert (twins.level, twins.kind, found.classes) == ("warning", "twins", 2)
    assert "U+0063 U+0061 U+0066 U+00E9" in twins.reason and "U+0065 U+0301" in twins.reason


def test_twins_of_case_stay_two_classes_and_are_named(tmp_path, workspace):
    found = scanned(labelled(tmp_path, "Flam", "flam", "C", "C#"), workspace)
    (twins,) = found.findings
    assert (twins.kind, twins.name, found.classes) == ("twins", "'Flam'", 4)
    assert "'flam'" in twins.reason and "U+0046 here and U+0066 there" in twins.reason


def test_one_class_is_refused_with_the_reason(tmp_path, workspace):
    found = scanned(labelled(tmp_path, "tap"), workspace)
    assert "only one class ('tap')" in found.refusal
    assert [(one.level, one.kind) for one in found.findings] == [("error", "data-set")]


def test_a_class_missing_in_train_is_left_out_file_by_file(tmp_path, workspace):
    path = labelled(tmp_path, "tap", "roll", "flam")
    path.write_text(path.read_text().replace('2-0.wav,"flam",train', '2-0.wav,"flam",test'))
    found = scanned(path, workspace)
    assert (found.classes, found.usable, found.refusal) == (2, 6, "")
    assert [one.name for one in found.findings] == ["2-0.wav", "2-1.wav", "2-2.wav"]
    assert all("'flam' has no clip in train (3 clips in all)" in one.reason for one in found.findings)


# Copies, and strict mode


def test_the_same_clip_in_train_and_test_is_a_warning_and_strictly_an_error(tmp_path, workspace):
    path = labelled(tmp_path, "tap", "roll")
    copy = bad_audio.soundfile.read(tmp_path / "0-0.wav", dtype="int16")
    bad_audio.soundfile.write(tmp_path / "copy.flac", *copy)  # another container, the same samples
    path.write_text(path.read_text() + '\ncopy.flac,"tap",test')
    (leak,) = scanned(path, workspace).findings
    assert (leak.level, leak.kind, leak.name) == ("warning", "copy", "0-0.wav")
    assert "in train" in leak.reason and "in test as copy.flac" in leak.reason
    strict = scanned(path, workspace, strict=True)
    assert strict.findings[0].level == "error" and "data.strict=false" in strict.refusal


def test_the_same_clip_with_two_labels_is_named(tmp_path, workspace):
    path = labelled(tmp_path, "tap", "roll")
    shutil.copy(tmp_path / "0-1.wav", tmp_path / "1-1.wav")
    (found,) = scanned(path, workspace).findings
    assert (found.kind, found.name) == ("two-labels", "0-1.wav")
    assert "1-1.wav, which is labelled 'roll', not 'tap'" in found.reason


def test_files_whose_channels_cancel_are_named_and_no_copies_of_each_other(tmp_path, workspace):
    path = labelled(tmp_path, "tap", "roll")
    for seed, name in enumerate(("0-0.wav", "1-1.wav")):
        sound = bad_audio.noise(seed)
        bad_audio.soundfile.write(tmp_path / name, [[x, -x] for x in sound], 16_000)
    found = scanned(path, workspace).findings
    assert [(one.kind, one.name) for one in found] == [("polarity", "0-0.wav"), ("polarity", "1-1.wav")]
    assert all("cancel" in one.reason and "channel 1 of 2" in one.reason for one in found)


def test_silence_is_no_copy_of_silence(tmp_path, workspace):
    path = labelled(tmp_path, "tap", "roll")
    for name in ("0-0.wav", "1-1.wav"):
        bad_audio.soundfile.write(tmp_path / name, [0.0] * 16_000, 16_000)
    assert {one.kind for one in scanned(path, workspace).findings} == {"silent"}


def test_preflight_counts_what_is_left_out_and_strict_refuses(bad):
    root, found, workspace = bad

    def checks(**more):
        draft = {"data": {"dataset": str(root), **more}, "model": {"weights": "random"}}
        return preflight.preflight(prepare.prepare(draft).config, workspace).checks

    said = [check for check in checks() if check.title == "Data"]
    facts = [check for check in said if check.level == "note"]
    assert {check.level for check in said if check not in facts} == {"warning"} and said[0] not in facts
    assert not any("left out" in check.detail or "warnings: " in check.detail for check in facts)
    assert f"{found.errors} of {found.files} files are left out: " in said[0].detail
    assert f"{found.warnings} warnings: " in said[1].detail and said[1] not in facts
    (refused,) = [check for check in checks(strict=True) if check.level == "error"]
    assert f" has {found.errors} errors, and strict mode" in refused.detail and "data.strict=false" in refused.detail


def test_preflight_says_what_is_still_to_be_decoded(drums, workspace):
    draft = {"data": {"dataset": str(drums)}, "model": {"weights": "random"}}
    settings = prepare.prepare(draft).config

    def said():
        return next(check.detail for check in preflight.preflight(settings, workspace).checks if check.title == "Files")

    assert said().startswith("12 of 12 files have not been scanned")
    scan.scan(data(drums), workspace)
    assert said() == "All 12 files have been scanned."


# The command


@pytest.fixture
def sousa(bad):
    return lambda *words: CliRunner().invoke(main, ["--workspace", str(bad[2].root), "scan", *map(str, words)])


def test_json_has_the_shape_that_its_help_promises(bad, sousa):
    root, found, _ = bad
    result = sousa(root, "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    counts = {"files", "scanned", "usable", "classes", "errors", "warnings", "kinds"}
    promised = {"dataset", "strict", *counts, "refusal", "findings", "passed_over"}
    assert set(printed) == promised
    text = sousa("--help").output
    assert all(word in text for word in [*promised, "level", "kind", "name", "reason"])
    assert printed["findings"][0] == {f: getattr(found.findings[0], f) for f in ("level", "kind", "name", "reason")}
    assert printed["errors"] == found.errors and sum(printed["kinds"].values()) == len(found.findings)


def test_strict_ends_with_2_where_something_is_wrong_and_with_0_where_nothing_is(bad, drums, sousa):
    assert sousa(bad[0], "--strict").exit_code == 2
    assert sousa(drums, "--strict").exit_code == 0
    assert sousa(bad[0]).exit_code == 0
    shutil.rmtree(drums / "tap")
    refused = sousa(drums)
    assert refused.exit_code == 2 and "only one class" in refused.stdout


def test_the_table_names_file_and_reason_and_counts(bad, sousa):
    root, found, _ = bad
    lines = sousa(root).stdout.splitlines()
    line = next(line for line in lines if "roll/truncated.wav" in line)
    assert line.startswith("ERROR") and "it holds 7,989" in line
    assert lines[-1].endswith(f"used in 2 classes; {found.errors} errors, {found.warnings} warnings")


def test_a_scan_result_does_not_count_for_a_file_that_has_changed(drums, workspace):
    path = drums / "tap" / "0.wav"
    whole = path.read_bytes()
    path.write_bytes(whole[:20_000])
    assert len(scanned(drums, workspace).findings) == 1
    path.write_bytes(whole)
    found = DataSet.open(data(drums), workspace).findings
    assert (found.findings, found.scanned) == ((), 11)
    assert decode.decode(path).error == ""
