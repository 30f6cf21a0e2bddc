"""The Data page: from an address to a clip one can hear, without torch, for embedded and for own data."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile
from streamlit.testing.v1 import AppTest

from sousa_engine.analysis import listen
from sousa_engine.analysis.charts.spectrogram import StrokeMark, spectrogram_figure, spectrogram_info
from sousa_engine.analysis.export import clips_csv, findings_csv
from sousa_engine.core.config import DataConfig
from sousa_engine.data import audio, excerpt, findings, scan, synth
from sousa_engine.data.manifest import open_dataset
from sousa_engine.runs import background
from sousa_engine.workspace import PROJECT_ROOT, intake

ROUTER = str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py")
PAGE = str(PROJECT_ROOT / "pages" / "data.py")


def visit(**parameters) -> AppTest:
    at = AppTest.from_file(ROUTER, default_timeout=180)
    at.switch_page(PAGE)
    for name, value in parameters.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception
    return at


def said(at: AppTest) -> str:
    return "\n".join(str(e.value) for kind in ("caption", "markdown", "info", "subheader") for e in at.get(kind))


def clip_table(at: AppTest):
    return next(frame.value for frame in at.dataframe if "clip" in frame.value.columns)


@pytest.fixture
def drums(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("flam", "single_drag_tap"):
        (tmp_path / "my *drums*" / label).mkdir(parents=True)
        for i in range(6):
            soundfile.write(tmp_path / f"my *drums*/{label}/{i}.wav", rng.normal(0, 0.1, 4000).clip(-1, 1), 8_000)
    return tmp_path / "my *drums*"


def test_the_page_opens_on_tiny_with_its_counts_and_a_first_clip():
    at = visit()
    facts = at.get("html")[0].proto.body
    assert "1,000" in facts and "train 640" in facts and "2.5 %" in facts
    assert len(clip_table(at)) == 1000
    assert "Single Stroke Roll" in said(at) and "librosa finds" in said(at)
    assert "No player is in two splits" in said(at)


def test_an_address_names_the_clip():
    at = visit(dataset="micro", clip="micro/flam-accent/0002")
    assert "Flam Accent" in said(at) and "Swiss Army Triplet" in said(at)


def test_a_clip_that_does_not_exist_falls_back_on_the_first():
    assert "Single Stroke Roll" in said(visit(dataset="micro", clip="nonsense"))


def test_filters_narrow_the_table():
    at = visit(dataset="micro")
    at.multiselect(key="class").set_value(["flam", "drag"]).run()
    assert len(clip_table(at)) == 8
    at.get_by_key("split").set_value(["test"]).run()
    assert set(clip_table(at)["split"]) == {"test"} and len(clip_table(at)) == 2


def test_next_steps_through_the_clips_that_are_shown():
    at = visit(dataset="micro")
    at.multiselect(key="class").set_value(["flam"]).run()
    next(b for b in at.button if b.label == "Next").click().run()
    assert at.query_params["clip"] == "micro/flam/0001"  # the first was shown from the start
    next(b for b in at.button if b.label == "Next").click().run()
    assert at.query_params["clip"] == "micro/flam/0002" and "clip 3 of 4" in said(at)


def test_a_folder_of_ones_own_is_shown_with_what_was_left_out(drums):
    (drums / "flam/broken.wav").write_text("no audio")
    at = visit(dataset=str(drums), clip="single_drag_tap/3.wav")
    assert not at.error and len(clip_table(at)) == 12
    assert "Single Drag Tap" in said(at)  # SOUSA's spelling of the label is understood
    assert "names no players" in said(at)
    left_out = next(frame.value for frame in at.dataframe if "why" in frame.value.columns)
    assert left_out["file"].tolist() == ["flam/broken.wav"]


def test_a_path_that_is_wrong_is_told_beside_the_two_layouts(tmp_path):
    at = visit(dataset=str(tmp_path / "nothing"))
    assert "no folder or file" in at.error[0].value.replace("\\", "")
    assert any("path,label,player,split" in code.value for code in at.code)


def test_choosing_own_data_shows_the_two_layouts_first():
    at = visit(dataset="micro")
    at.get_by_key("data.choice").set_value("my own data").run()
    assert not at.exception and not at.error and not at.dataframe
    assert any("path,label,player,split" in code.value for code in at.code)


def test_a_silent_clip_says_so(drums):
    soundfile.write(drums / "flam/0.wav", np.zeros(4000), 8_000)
    assert "completely silent" in said(visit(dataset=str(drums), clip="flam/0.wav"))


def test_a_file_that_cannot_be_decoded_says_so_and_the_page_stays(drums):
    path = drums / "flam/1.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 8000).clip(-1, 1), 8_000)
    path.write_bytes(path.read_bytes()[:4000])
    at = visit(dataset=str(drums), clip="flam/1.flac")
    assert "1.flac" in at.error[0].value.replace("\\", "") and "Players per split" in said(at)


def test_the_page_itself_decodes_only_what_a_scan_has_found_sound(drums, workspace_of_its_own, monkeypatch):
    inside, outside = [], []
    load, waveform = audio.load, excerpt.waveform
    monkeypatch.setattr(audio, "load", lambda path, *rest: (inside.append(path.name), load(path, *rest))[1])
    monkeypatch.setattr(excerpt, "waveform", lambda path, *rest: (outside.append(path.name), waveform(path, *rest))[1])

    def listen_to(clip: str) -> tuple[list[str], list[str]]:
        inside.clear(), outside.clear()
        at = visit(dataset=str(drums), clip=clip)
        assert at.get("audio") and not at.error
        return inside, outside

    assert listen_to("flam/0.wav") == ([], ["0.wav"])
    assert listen_to("flam/0.wav") == ([], []), "remembered"
    scan.scan(DataConfig(dataset=str(drums)), workspace_of_its_own)
    assert listen_to("flam/1.wav") == (["1.wav"], [])
    soundfile.write(drums / "flam/2.wav", np.random.default_rng(9).normal(0, 0.1, 4001), 8_000)
    assert listen_to("flam/2.wav") == ([], ["2.wav"]), "it has changed since"


def test_a_clip_that_kills_its_decoder_is_a_sentence_and_the_page_stays(drums, workspace_of_its_own, monkeypatch):
    crash = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(excerpt, "waveform", partial(excerpt.waveform, command=crash))
    at = visit(dataset=str(drums), clip="flam/0.wav")
    assert "crashes the decoder" in at.error[0].value and "Players per split" in said(at)


def test_names_of_files_are_never_markdown(tmp_path):
    nasty = "**bold** [link](x) <b>"
    for i in range(6):
        for label in (nasty, "tap"):
            (tmp_path / "d" / label).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "d" / label / f"{i}.wav", np.full(4000, 0.1), 8_000)
    shown = [e.value for e in visit(dataset=str(tmp_path / "d")).subheader if "bold" in e.value]
    assert shown and all("**" not in text and "\\*\\*bold" in text and "\\<b" in text for text in shown)


# What is seen and heard


def clicks(times_s, rate_hz=16_000, seconds=4.0):
    waveform = np.zeros(round(seconds * rate_hz), dtype=np.float32)
    decay = np.exp(-np.arange(800) / 80.0) * np.random.default_rng(0).normal(0, 0.5, 800)
    for t in times_s:
        at = round(t * rate_hz)
        waveform[at : at + 800] += decay[: waveform.size - at]
    return waveform


def test_onsets_are_heard_where_strokes_fall():
    times_s = np.arange(0.25, 3.8, 0.25)
    heard = np.array(listen.onset_times(clicks(times_s), 16_000))
    assert len(heard) == len(times_s) and np.abs(heard - times_s).max() < 0.03


def test_tempo_is_the_beat_or_a_simple_share_of_it():
    heard = listen.tempo_bpm(clicks(np.arange(0.1, 3.9, 0.5)), 16_000)
    assert heard is not None and listen.tempo_share(heard, 120.0) is not None
    assert listen.tempo_share(60.5, 120.0) == 0.5
    assert listen.tempo_share(107.0, 120.0) is None


def test_envelope_spans_the_clip_and_touches_every_peak():
    waveform = clicks([0.5, 2.0])
    envelope = listen.envelope(waveform, 16_000, points=600)
    assert len(envelope.times_s) <= 600 and envelope.times_s[0] > 0 and envelope.times_s[-1] < 4.0
    assert envelope.high.max() == waveform.max() and envelope.low.min() == waveform.min()


def test_the_picture_has_strokes_wave_spectrogram_and_onsets_on_one_axis():
    micro = open_dataset(DataConfig(dataset="micro"))
    clip = micro.by_id["micro/flam-accent/0001"]
    waveform = audio.waveform(micro, clip)
    listening = listen.listen(waveform, 16_000)
    marks = [StrokeMark(onset_s=e.onset_s, hand=e.hand, accent=e.accent, text="") for e in synth.events(clip.source)]
    info = spectrogram_info(
        listen.envelope(waveform, 16_000), listening.spectrogram, listening.onsets_s, duration_s=4.0, strokes=marks
    )
    assert info.cells.max() == 80 and info.cells.shape == (listen.MELS, len(info.times_s))
    assert [text for _, text in info.ticks][-1] == "8 kHz" and info.onsets_s == listening.onsets_s
    names = [trace.name for trace in spectrogram_figure(info).data]
    assert names == ["right hand", "left hand", "waveform", "mel spectrogram", "onset detected by librosa"]
    without = spectrogram_figure(info._replace(strokes=(), onsets_s=()))
    assert [trace.name for trace in without.data] == ["waveform", "mel spectrogram"]


# Files, as a scan sees them


@pytest.fixture
def workspace_of_its_own(workspace, monkeypatch):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    return workspace


def truncate(path):
    path.write_bytes(path.read_bytes()[:4000])


def findings_table(at: AppTest):
    return next((frame.value for frame in at.dataframe if "why" in frame.value.columns), None)


def test_the_page_says_what_lies_in_the_folder_and_is_passed_over(drums, workspace_of_its_own):
    (drums / "flam/.hidden.wav").write_bytes(b"x")
    (drums / "read_me.txt").write_text("x")
    told = r"Passed over: 1 hidden (flam/.hidden.wav), 1 not audio by suffix (read\_me.txt)."
    assert told in said(visit(dataset=str(drums)))


def test_before_a_scan_the_page_says_so_and_offers_one(drums, workspace_of_its_own):
    truncate(drums / "flam/2.wav")
    at = visit(dataset=str(drums))
    assert "12 files not decoded yet" in said(at) and findings_table(at) is None
    assert any(b.label == "Scan the files" for b in at.button)


def test_after_a_scan_findings_are_listed_counted_and_can_be_downloaded(drums, workspace_of_its_own):
    truncate(drums / "flam/2.wav")
    soundfile.write(drums / "flam/3.wav", np.zeros(4000), 8_000)
    scan.scan(DataConfig(dataset=str(drums)), workspace_of_its_own)
    at = visit(dataset=str(drums))
    table = findings_table(at)
    assert table["file"].tolist() == ["flam/2.wav", "flam/3.wav"] and table["level"].tolist() == ["error", "warning"]
    assert "promises 4,000 samples, it holds 1,978" in table["why"][0]
    assert "12 files, 11 used in 2 classes; 1 error, 1 warning" in said(at)
    assert len(clip_table(at)) == 11, "the page shows what a run gets"
    assert any(b.proto.label == "Download as CSV" for b in at.get("download_button"))


def test_the_switch_of_strict_mode_says_what_it_would_do_and_goes_along_to_launch(drums, workspace_of_its_own):
    truncate(drums / "flam/2.wav")
    scan.scan(DataConfig(dataset=str(drums)), workspace_of_its_own)
    at = visit(dataset=str(drums))
    assert "Strict mode refuses" not in said(at)
    at.toggle(key="strict").set_value(True).run()
    assert "Strict mode refuses" in said(at)
    link = next(link for link in at.get("page_link") if link.proto.label == "Train on this data set")
    assert "strict=true" in link.proto.query_string
    assert "Strict mode refuses" in said(visit(dataset=str(drums), strict="true"))


def test_the_button_has_the_scan_done_by_another_process(drums, workspace_of_its_own, monkeypatch):
    started = []
    monkeypatch.setattr(background, "scan_data", lambda _, data, **more: started.append((data.dataset, more)))
    at = visit(dataset=str(drums))
    at.get_by_key("scan.start").click().run()
    assert started == [(str(drums), {"fresh": False})]


def test_a_scan_that_runs_is_shown_with_its_progress_and_can_be_stopped(drums, workspace_of_its_own):
    data = DataConfig(dataset=str(drums))
    folder = scan.folder_of(data, workspace_of_its_own)
    with intake.taking_in(folder) as tell:
        tell(scan.SCANNING, 5, 12)
        at = visit(dataset=str(drums))
        assert "Decoding files: 5 of 12" in at.get("progress")[0].proto.text
        at.get_by_key("scan.stop").click().run()
        assert (folder / "stop").exists()


def test_data_that_cannot_be_trained_on_still_lists_its_files(drums, workspace_of_its_own):
    for path in (drums / "flam").iterdir():
        truncate(path)
    scan.scan(DataConfig(dataset=str(drums)), workspace_of_its_own)
    at = visit(dataset=str(drums))
    assert "only one class" in at.error[0].value.replace("\\", "")
    assert findings_table(at)["file"].tolist()[:2] == ["the whole data set", "flam/0.wav"]


def test_data_that_was_refused_is_read_again_by_the_next_visit(drums, workspace_of_its_own):
    whole = {path: path.read_bytes() for path in (drums / "flam").iterdir()}
    for path in whole:
        path.write_bytes(b"")
    assert "only one class" in visit(dataset=str(drums)).error[0].value
    for path, content in whole.items():
        path.write_bytes(content)
    at = visit(dataset=str(drums))
    assert not at.error and len(clip_table(at)) == 12


def test_findings_as_csv_keep_formulas_harmless():
    found = findings.Finding(level="warning", kind="label", name="=cmd()|'x'", reason='it holds "<", U+003C')
    lines = findings_csv([found]).splitlines()
    assert lines[0] == "level,kind,what,file,reason"
    assert lines[1] == 'warning,label,unusual label,\'=cmd()|\'x\',"it holds ""<"", U+003C"'


def test_clips_as_csv_are_a_data_set_again_and_keep_formulas_harmless(drums, tmp_path):
    clips = open_dataset(DataConfig(dataset=str(drums))).clips
    table = tmp_path / "clips.csv"
    table.write_text(clips_csv(clips), "utf-8", newline="")
    again = open_dataset(DataConfig(dataset=str(table))).clips
    assert [(c.source, c.label, c.split) for c in again] == [(c.source, c.label, c.split) for c in clips]
    hostile = replace(clips[0], label="=1+1", group="@ben", columns={"mood": "-cmd", "take": 3.0})
    lines = clips_csv([clips[1], hostile]).splitlines()
    assert lines[0] == "path,label,player,split,duration_s,mood,take"
    assert lines[1].endswith(",0.5,,") and ",'=1+1,'@ben," in lines[2] and lines[2].endswith(",0.5,'-cmd,3.0")


def test_clips_that_are_made_here_have_their_ids_in_the_csv():
    line = clips_csv(open_dataset(DataConfig(dataset="micro")).clips[:1]).splitlines()[1]
    assert line.startswith("micro/")


@pytest.fixture
def takes(tmp_path):
    """Folders of players that hold the classes."""
    for player in ("player1", "player2", "player3"):
        for label in ("drag", "flam"):
            (tmp_path / "takes" / player / label).mkdir(parents=True)
            for i in range(2):
                soundfile.write(tmp_path / "takes" / player / label / f"{i}.wav", np.zeros(4000), 8_000)
    return tmp_path / "takes"


def test_a_reading_that_is_refused_offers_the_one_that_fits_and_launch_gets_it(takes):
    at = visit(dataset=str(takes))
    assert "look like players, not like classes" in at.error[0].value
    at.button(key="reading.offer.data.level").click().run()
    assert not at.exception and not at.error, at.error[0].value
    assert at.query_params["data.level"] in ("2", ["2"])
    assert at.expander[0].label == (
        "Read as: 12 clips, 2 classes from the folders at level 2, groups from the folders at level 1, kept whole."
    )
    link = next(link for link in at.get("page_link") if "Train on this data set" in link.proto.label)
    assert "data.level=2" in link.proto.query_string.replace("%2E", ".")
    at.button(key="reading.reset").click().run()
    assert "look like players" in at.error[0].value


def test_another_column_is_chosen_on_the_page_and_kept_in_the_address(tmp_path):
    for i in range(12):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(4000), 8_000)
    rows = "\n".join(f"{i}.wav,{'ab'[i % 2]},{'xyz'[i % 3]}" for i in range(12))
    (tmp_path / "clips.csv").write_text(f"file,label,mood\n{rows}\n")
    at = visit(dataset=str(tmp_path / "clips.csv"))
    assert "2 classes from the column label" in at.expander[0].label
    at.selectbox(key="reading.label_column").set_value("mood").run()
    assert not at.exception and at.query_params["data.label_column"] in ("mood", ["mood"])
    assert "3 classes from the column mood" in at.expander[0].label
