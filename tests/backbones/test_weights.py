"""Weights: downloaded whole or not at all, imported if they fit, told apart, verified; and never a hang."""

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import huggingface_hub.constants
import pytest
import torch
from file_server import FileServer
from safetensors.torch import load_file, save_file

from sousa_engine import backbones
from sousa_engine.backbones import Download, ast, beats, downloads, key_tree, pretrained
from sousa_engine.core.errors import WeightsError
from sousa_engine.workspace import intake

BODY = "audio_spectrogram_transformer"
SMALL = bytes(range(256)) * 3000  # 768,000 bytes: three blocks


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """No pauses, no answers remembered, no settings or cache of whoever runs the tests."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    monkeypatch.setattr(downloads, "answers", {})
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def serve():
    """Start a server of some bytes; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def start(content: bytes = SMALL) -> FileServer:
            server = FileServer(content)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def server(serve):
    return serve()


def published(server, **known) -> Download:
    """What the server has, with whatever else is known of it."""
    return Download(page="https://example.org/page", file="net.safetensors", url=f"{server.url}/net", **known)


def by_sha256(server) -> Download:
    import hashlib

    return published(server, size_bytes=len(server.content), sha256=hashlib.sha256(server.content).hexdigest())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Downloading


def test_a_whole_download_is_the_file_and_leaves_nothing_else(server, tmp_path):
    told = []
    file = downloads.fetch(by_sha256(server), tmp_path / "new", lambda done, total: told.append((done, total)))
    assert file.read_bytes() == SMALL and names(file.parent) == ["net.safetensors"]
    assert told[0] == (0, len(SMALL)) and told[-1] == (len(SMALL), len(SMALL)) and told == sorted(told)
    assert server.sent == [(0, len(SMALL))]


def test_a_broken_download_goes_on_where_it_broke_and_fetches_no_byte_twice(server, tmp_path):
    server.cuts = [1000, 300_000]
    file = downloads.fetch(published(server), tmp_path)
    assert file.read_bytes() == SMALL
    assert [get.get("Range") for get in server.gets] == [None, "bytes=1000-", "bytes=301000-"]
    assert server.gets[1]["If-Range"] == server.etag
    assert server.sent == [(0, 1000), (1000, 300_000), (301_000, len(SMALL) - 301_000)]


def test_patience_ends_only_when_attempts_bring_nothing_and_the_next_call_goes_on(server, tmp_path):
    server.cuts = [1000] * 10 + [0] * downloads.TRIES
    with pytest.raises(WeightsError, match=r"connection ended after 10,000 of 768,000 bytes.*10,000 bytes are kept"):
        downloads.fetch(published(server), tmp_path)
    assert len(server.gets) == 10 + downloads.TRIES
    assert downloads.kept(published(server), tmp_path) == 10_000
    assert downloads.fetch(published(server), tmp_path).read_bytes() == SMALL
    assert server.gets[-1]["Range"] == "bytes=10000-" and server.sent[-1] == (10_000, len(SMALL) - 10_000)


def test_what_interrupts_a_download_leaves_what_came(server, tmp_path):
    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        downloads.fetch(published(server), tmp_path, interrupt)
    came = downloads.kept(published(server), tmp_path)
    assert came > 0
    assert downloads.fetch(published(server), tmp_path).read_bytes() == SMALL
    assert server.gets[1]["Range"] == f"bytes={came}-"


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges, server.cuts = False, [1000]
    assert downloads.fetch(published(server), tmp_path).read_bytes() == SMALL
    assert server.sent == [(0, 1000), (0, len(SMALL))]


def test_a_file_that_changed_between_attempts_is_not_joined_with_the_old_one(server, tmp_path):
    server.cuts = [1000] + [0] * downloads.TRIES
    with pytest.raises(WeightsError):
        downloads.fetch(published(server), tmp_path)
    old, server.content = server.etag, SMALL[::-1]
    assert downloads.fetch(published(server), tmp_path).read_bytes() == SMALL[::-1]
    assert server.gets[-1]["If-Range"] == old and server.sent[-1] == (0, len(SMALL))


@pytest.mark.parametrize("known", [True, False])
def test_without_a_tag_only_a_checksum_allows_to_go_on(server, tmp_path, known):
    server.tag, server.cuts = False, [1000]
    file = downloads.fetch(by_sha256(server) if known else published(server), tmp_path)
    assert file.read_bytes() == SMALL
    assert server.gets[1].get("Range") == ("bytes=1000-" if known else None)


def test_a_wrong_checksum_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(WeightsError, match=r"has sha256 [0-9a-f]{12}\.\.\. instead of 000000000000.*not used"):
        downloads.fetch(published(server, sha256="0" * 64), tmp_path)
    assert names(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_a_byte_of_it_comes(server, tmp_path):
    with pytest.raises(
        WeightsError, match=r"net\.safetensors at .* has 768,000 bytes instead of the published 768,001"
    ):
        downloads.fetch(published(server, size_bytes=len(SMALL) + 1), tmp_path)
    assert names(tmp_path) == []


def test_a_size_that_shows_only_at_the_end_is_refused_and_not_kept(server, tmp_path):
    server.length = False
    with pytest.raises(WeightsError, match="has 768,000 bytes instead of 768,001"):
        downloads.fetch(published(server, size_bytes=len(SMALL) + 1), tmp_path)
    assert names(tmp_path) == []
    whole = downloads.fetch(published(server), tmp_path / "unknown size")
    assert whole.read_bytes() == SMALL


def test_a_download_that_was_whole_already_is_not_fetched_again(server, tmp_path):
    (tmp_path / ".net.safetensors.part").write_bytes(SMALL)
    (tmp_path / ".net.safetensors.tag").write_text(server.etag)
    assert downloads.fetch(published(server), tmp_path).read_bytes() == SMALL
    assert server.sent == [] and server.gets[0]["Range"] == f"bytes={len(SMALL)}-"


def test_a_part_longer_than_the_file_is_started_over(server, tmp_path):
    (tmp_path / ".net.safetensors.part").write_bytes(SMALL + b"more")
    assert downloads.fetch(by_sha256(server), tmp_path).read_bytes() == SMALL
    assert server.sent == [(0, len(SMALL))]


@pytest.mark.parametrize("status", [404, 410, 503])
def test_a_server_that_says_no_is_quoted_and_not_called_offline(server, tmp_path, status):
    server.status = status
    with pytest.raises(WeightsError, match=rf"127\.0\.0\.1:\d+ answered {status} .*example\.org/page") as error:
        downloads.fetch(published(server), tmp_path)
    assert "offline" not in str(error.value)


def test_a_server_that_will_not_be_asked_is_tried_and_one_that_says_no_is_tried_once(server, tmp_path):
    server.status, server.refuses = 403, ("HEAD",)
    assert downloads.fetch(published(server), tmp_path / "one").read_bytes() == SMALL
    server.refuses = ("HEAD", "GET")
    with pytest.raises(WeightsError, match=r"could not be downloaded .*answered 403"):
        downloads.fetch(published(server), tmp_path / "two")
    assert len(server.gets) == 2


def test_a_file_without_a_link_names_its_page_and_the_import(tmp_path):
    by_hand = Download(page="https://example.org/drive", file="x.ckpt", url=None)
    with pytest.raises(
        WeightsError, match=r"no direct link; download x\.ckpt from https://example\.org/drive.*weights imp"
    ):
        downloads.fetch(by_hand, tmp_path)


def test_a_full_disk_is_told_before_and_during_a_download(server, tmp_path, monkeypatch, full_disk):
    with pytest.raises(WeightsError, match="needs 1 MB"):
        downloads.fetch(published(server), tmp_path)
    monkeypatch.undo()

    def no_room(done, total):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WeightsError, match=r"is full.*will be resumed"):
        downloads.fetch(published(server), tmp_path, no_room)


def test_the_hub_may_be_a_mirror(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/mirror/")
    at_hub = dataclasses.replace(published(server), url="https://huggingface.co/a/b/resolve/main/net.safetensors")
    assert downloads.fetch(at_hub, tmp_path).read_bytes() == SMALL
    assert set(server.paths) == {"/mirror/a/b/resolve/main/net.safetensors"}
    assert downloads.host(at_hub.url) == server.url.removeprefix("http://")


# Offline


@pytest.fixture
def silent():
    """The address of a server that takes connections and says nothing, ever."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/net"


def test_a_server_that_never_answers_costs_a_moment_and_gives_a_sentence(silent, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "PATIENCE_S", 0.2)
    with pytest.raises(WeightsError, match=r"cannot be reached.*may be offline\. Nothing was downloaded.*weights imp"):
        downloads.fetch(Download(page="p", file="x.pth", url=silent), tmp_path)


def test_a_name_that_nobody_looks_up_costs_a_moment_once_for_all_files_of_a_server(monkeypatch):
    asked, never = [], threading.Event()

    def look_up(request, **_):
        asked.append(request.full_url)
        never.wait()
        raise OSError("at last")

    monkeypatch.setattr(downloads, "PATIENCE_S", 0.05)
    monkeypatch.setattr(urllib.request, "urlopen", look_up)
    for file in ("one", "two"):
        assert "example.org cannot be reached" in downloads.unreachable(f"https://example.org/{file}")
    assert asked == ["https://example.org/one"]
    assert downloads.unreachable("https://example.org/two", fresh=True)
    assert asked[1:] == ["https://example.org/two"]
    never.set()


def test_a_server_that_is_back_is_believed(monkeypatch, serve):
    server = serve()
    address = server.url
    assert downloads.unreachable(f"{address}/net") == ""
    server.close()
    assert downloads.unreachable(f"{address}/net") == ""  # remembered a minute
    assert "refused" in downloads.unreachable(f"{address}/net", fresh=True)
    assert "refused" in downloads.unreachable(f"{address}/net")
    monkeypatch.setattr(downloads, "ask", lambda place: (True, ""))
    assert downloads.unreachable(f"{address}/net", fresh=True) == ""
    assert downloads.unreachable(f"{address}/other") == ""


def test_hf_hub_offline_asks_nothing_of_the_network(server, tmp_path, offline):
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        downloads.fetch(published(server), tmp_path)
    assert server.paths == []


def test_missing_weights_are_an_error_with_the_ways_out_and_never_a_fallback(workspace, offline):
    state = backbones.weights_state("ast-base", workspace)
    assert not state.available and state.label == ""
    with pytest.raises(WeightsError) as error:
        backbones.open_network("ast-base", num_classes=40, workspace=workspace)
    for way in ("weights import FILE", "model.weights=FILE", "model=ast-mini", "model.weights=random"):
        assert way in str(error.value)
    assert str(workspace.weights / "ast-base") in str(error.value) and "HF_HUB_OFFLINE" in str(error.value)
    assert "no direct link" in backbones.weights_state("htsat", workspace).message


def test_asking_about_weights_never_imports_torch(workspace):
    code = (
        "import sys; from pathlib import Path\n"
        "from sousa_engine import backbones; from sousa_engine.backbones import shelf\n"
        "from sousa_engine.workspace import intake; from sousa_engine.backbones import pretrained\n"
        "from sousa_engine.workspace import Workspace\n"
        "workspace = Workspace(root=Path(sys.argv[1]))\n"
        "for variant in backbones.VARIANTS.values():\n"
        "    backbones.weights_state(variant.name, workspace)\n"
        "    shelf.row(variant, workspace)\n"
        "    intake.look(pretrained.intake_folder(variant, workspace))\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'torchaudio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(workspace.root)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"


# Fetching a backbone's weights


@pytest.fixture
def mini_bytes():
    return (pretrained.EMBEDDED / "ast-mini" / "model.safetensors").read_bytes()


@pytest.fixture
def far_mini(serve, mini_bytes, monkeypatch):
    """ast-mini as if its weights were not in the package but on a server: (variant, server)."""
    server = serve(mini_bytes)
    variant = dataclasses.replace(
        backbones.variant("ast-mini"), name="far-mini", embedded=False, download=by_sha256(server)
    )
    monkeypatch.setitem(backbones.VARIANTS, variant.name, variant)
    return variant, server


def known_only_by_name(variant, monkeypatch):
    """The same variant with nothing known beforehand of its file."""
    variant = dataclasses.replace(variant, download=dataclasses.replace(variant.download, size_bytes=None, sha256=None))
    monkeypatch.setitem(backbones.VARIANTS, variant.name, variant)
    return variant


def test_a_run_downloads_what_it_needs_and_records_file_and_sha256(far_mini, workspace):
    variant, server = far_mini
    state = backbones.weights_state(variant.name, workspace)
    assert state.available and state.label == "pretrained: net.safetensors, downloaded when the run starts"
    network = backbones.open_network(variant.name, num_classes=5, workspace=workspace)
    assert network.weights_label == f"pretrained: net.safetensors, sha256 {variant.download.sha256[:12]}"
    norm = load_file(pretrained.EMBEDDED / "ast-mini" / "model.safetensors")[f"{BODY}.layernorm.weight"]
    assert torch.equal(network.module.state_dict()[f"{BODY}.layernorm.weight"], norm.float())
    here = pretrained.stored(variant, workspace)
    assert here.origin == f"downloaded from {server.url}/net" and here.recorded == variant.download.sha256
    assert names(here.path.parent) == ["model.safetensors", "origin.json"]
    assert names(pretrained.intake_folder(variant, workspace)) == ["lock"]


def test_weights_that_are_here_and_whole_are_not_fetched_again_damaged_ones_are(far_mini, workspace, mini_bytes):
    variant, server = far_mini
    pretrained.fetch(variant, ast, workspace)
    pretrained.fetch(variant, ast, workspace)
    assert len(server.sent) == 1
    file = pretrained.stored(variant, workspace).path
    damage(file)
    pretrained.fetch(variant, ast, workspace)
    assert len(server.sent) == 2 and file.read_bytes() == mini_bytes


def test_a_download_that_fits_no_network_of_this_name_is_refused_and_not_kept(
    far_mini, workspace, monkeypatch, foreign_file, mini_bytes
):
    """With neither size nor checksum published, the tensors still say what a file is."""
    variant, server = known_only_by_name(far_mini[0], monkeypatch), far_mini[1]
    server.content = mini_bytes[:-1000]
    with pytest.raises(WeightsError, match="truncated"):
        pretrained.fetch(variant, ast, workspace)
    server.content = foreign_file.read_bytes()
    with pytest.raises(WeightsError, match=r"does not fit far-mini: \d+ of \d+ tensors are missing.*was deleted"):
        pretrained.fetch(variant, ast, workspace)
    assert pretrained.stored(variant, workspace) is None
    server.content = mini_bytes
    assert pretrained.fetch(variant, ast, workspace).available


def test_what_the_hubs_own_client_has_in_its_cache_is_here(far_mini, workspace, mini_bytes, tmp_path, monkeypatch):
    variant, server = far_mini
    at_hub = dataclasses.replace(variant.download, url="https://huggingface.co/a/b/resolve/main/net.safetensors")
    variant = dataclasses.replace(variant, download=at_hub)
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "net.safetensors").write_bytes(mini_bytes)
    (tmp_path / "hub" / "models--a--b" / "refs").mkdir()
    (tmp_path / "hub" / "models--a--b" / "refs" / "main").write_text("c0ffee")
    assert pretrained.stored(variant, workspace).origin == "hub cache"
    state = pretrained.fetch(variant, ast, workspace)
    assert state.label == "pretrained: far-mini (hub cache)" and state.path == snapshot / "net.safetensors"
    damage(state.path)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert pretrained.fetch(variant, ast, workspace).path == workspace.weights / "far-mini" / "model.safetensors"


def test_embedded_weights_need_no_download(workspace):
    with pytest.raises(WeightsError, match="come with this package"):
        pretrained.fetch(backbones.variant("ast-mini"), ast, workspace)


def test_a_workspace_that_cannot_be_written_to_is_told(far_mini, workspace):
    workspace.runs.write_text("a file where a folder should be")
    with pytest.raises(WeightsError, match="cannot be written to"):
        pretrained.fetch(far_mini[0], ast, workspace)


# One intake at a time, and everybody sees it


FETCH = """
import dataclasses, sys
from pathlib import Path
from sousa_engine import backbones
from sousa_engine.backbones import Download, ast, pretrained
from sousa_engine.workspace import Workspace
download = Download(page="p", file="net.safetensors", url=sys.argv[2])
variant = dataclasses.replace(backbones.variant("ast-mini"), name="far-mini", embedded=False, download=download)
pretrained.check_fits = lambda *words: None  # needs torch, whose import takes seconds
print("ready", flush=True)
print(pretrained.fetch(variant, ast, Workspace(root=Path(sys.argv[1]))).label, flush=True)
"""


def fetching(workspace, server):
    """Another process that fetches far-mini; it has said that it is about to."""
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, str(workspace.root), f"{server.url}/net"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_at_once_fetch_one_file(far_mini, workspace):
    server = far_mini[1]
    server.gate.clear()
    first = fetching(workspace, server)
    assert server.asked.wait(60)
    second = fetching(workspace, server)
    server.gate.set()
    for process in (first, second):
        out, _ = process.communicate(timeout=120)
        assert out == "pretrained: net.safetensors\n" and process.returncode == 0
    assert server.sent == [(0, len(server.content))]


def test_a_download_is_seen_from_outside_and_its_death_too_and_it_can_go_on(far_mini, workspace):
    variant, server = far_mini
    folder = pretrained.intake_folder(variant, workspace)
    assert intake.look(folder) is None
    server.free = 1_000_000
    server.gate.clear()
    process = fetching(workspace, server)
    assert server.asked.wait(60)
    while not downloads.kept(variant.download, folder):
        assert process.poll() is None
        time.sleep(0.02)
    seen = intake.look(folder)
    assert seen.is_running and seen.doing == "downloading" and seen.total == len(server.content)
    assert intake.lock(folder) is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    seen = intake.look(folder)
    assert not seen.is_running and "ended unexpectedly while downloading" in seen.error
    server.gate.set()
    assert pretrained.fetch(variant, ast, workspace).available
    assert intake.look(folder) is None
    assert server.sent[1][0] > 0


def test_a_download_ends_when_asked_to_and_says_so(far_mini, workspace):
    variant, _ = far_mini
    folder = pretrained.intake_folder(variant, workspace)
    asked = []

    def tell(doing, done, total):
        if not asked:
            asked.append(intake.ask_to_stop(folder))

    with pytest.raises(WeightsError, match="Stopped as requested"):
        pretrained.fetch(variant, ast, workspace, tell=tell)
    assert "Stopped as requested" in intake.look(folder).error
    assert pretrained.fetch(variant, ast, workspace).available  # the wish does not outlive it


def test_a_whole_download_outlives_an_interrupted_check(far_mini, workspace):
    variant, server = far_mini

    def interrupt(doing, done, total):
        if doing == "checking":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrained.fetch(variant, ast, workspace, tell=interrupt)
    assert intake.look(pretrained.intake_folder(variant, workspace)).error == intake.STOPPED
    assert pretrained.fetch(variant, ast, workspace).available
    assert len(server.gets) == 1


def test_an_error_stays_to_be_read_until_the_next_intake(far_mini, workspace):
    variant, server = far_mini
    server.status = 404
    with pytest.raises(WeightsError) as error:
        pretrained.fetch(variant, ast, workspace)
    seen = intake.look(pretrained.intake_folder(variant, workspace))
    assert seen.error == str(error.value) and not seen.is_running and seen.at_ms > 0
    folder = pretrained.intake_folder(variant, workspace)
    with (folder / "lock").open() as lock:  # the error is written before the lock drops
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert intake.look(folder) == seen
    with intake.taking_in(folder):
        seen = intake.look(folder)
        assert seen.is_running and seen.error == "" and seen.doing == "starting"


# Importing


@pytest.fixture
def mini():
    return backbones.build("ast-mini", num_classes=7).eval()


@pytest.fixture
def mini_file(mini, tmp_path):
    """Weights of ast-mini in today's names, with a head of 7 classes."""
    path = tmp_path / "mine.safetensors"
    save_file(mini.state_dict(), path)
    return path


@pytest.fixture
def foreign_file(tmp_path):
    """Weights of another family."""
    path = tmp_path / "foreign.safetensors"
    save_file(backbones.build("mn04_as", num_classes=7).state_dict(), path)
    return path


def damage(file):
    """Change one byte in the middle of a file's tensors."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))


def test_an_imported_file_becomes_the_pretrained_weights(far_mini, mini, mini_file, workspace):
    variant, _ = far_mini
    state = pretrained.import_weights(variant, ast, mini_file, workspace)
    assert state.available and state.path == workspace.weights / "far-mini" / "model.safetensors"
    network = backbones.open_network("far-mini", num_classes=40, workspace=workspace)
    assert network.weights_label == f"pretrained: mine.safetensors, sha256 {downloads.sha256(mini_file)[:12]}"
    assert torch.equal(
        network.module.audio_spectrogram_transformer.layernorm.weight, mini.state_dict()[f"{BODY}.layernorm.weight"]
    )
    assert names(state.path.parent) == ["model.safetensors", "origin.json"]
    assert mini_file.exists()


def test_an_import_replaces_what_was_there_whatever_its_kind(far_mini, mini, mini_file, workspace, tmp_path):
    variant, _ = far_mini
    pretrained.import_weights(variant, ast, mini_file, workspace)
    torch.save(mini.state_dict(), tmp_path / "other.ckpt")
    state = pretrained.import_weights(variant, ast, tmp_path / "other.ckpt", workspace)
    assert names(state.path.parent) == ["model.pth", "origin.json"]
    assert pretrained.stored(variant, workspace).origin == f"imported from {tmp_path / 'other.ckpt'}"


def test_an_import_for_an_embedded_backbone_is_refused_for_it_would_never_be_used(mini_file, workspace):
    with pytest.raises(WeightsError, match=r"never be used.*model\.weights"):
        pretrained.import_weights(backbones.variant("ast-mini"), ast, mini_file, workspace)


def test_embedded_weights_that_are_missing_say_so(workspace, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "EMBEDDED", tmp_path / "nothing embedded")
    with pytest.raises(WeightsError, match="Restore the file"):
        backbones.open_network("ast-mini", num_classes=40, workspace=workspace)


def test_a_foreign_file_is_not_imported_and_the_reason_names_tensors(mini_file, foreign_file, workspace):
    with pytest.raises(WeightsError, match=r"of 199 tensors are missing.*another shape") as error:
        pretrained.import_weights(backbones.variant("ast-base"), ast, mini_file, workspace)
    assert "does not fit ast-base" in str(error.value)
    with pytest.raises(WeightsError, match=r"199 of 199 tensors are missing.*do not belong to this network \(first: "):
        pretrained.import_weights(backbones.variant("ast-base"), ast, foreign_file, workspace)
    assert not (workspace.weights / "ast-base").exists()


def test_a_missing_and_an_unknown_tensor_are_counted_and_named(mini):
    state = dict(mini.state_dict())
    state[f"{BODY}.layernorm.wieght"] = state.pop(f"{BODY}.layernorm.weight")
    before = {key: value.clone() for key, value in mini.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        key_tree.load_official(mini, state, ast)
    text = str(error.value)
    assert f"1 of {len(state)} tensors are missing" in text and f"the file has {BODY}.layernorm.wieght" in text
    assert "1 do not belong to this network" in text
    assert all(torch.equal(value, before[key]) for key, value in mini.state_dict().items())


def test_a_known_name_on_a_tensor_of_the_wrong_kind_is_refused(workspace, tmp_path):
    torch.save({"v.blocks.0.attn.qkv.weight": torch.zeros(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="does not fit ast-base: its tensors cannot be read as ast's"):
        pretrained.import_weights(backbones.variant("ast-base"), ast, tmp_path / "x.pth", workspace)


@pytest.mark.parametrize("envelope", [lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}, lambda s: s])
def test_an_envelope_and_a_prefix_are_taken_off(mini, envelope):
    state = {f"module.{key}": value + 1 for key, value in mini.state_dict().items()}
    key_tree.load_official(mini, envelope(state), ast)
    assert torch.equal(mini.classifier.dense.bias, state["module.classifier.dense.bias"])


@pytest.mark.parametrize(
    ("variant", "prefix"),
    [
        *(("ast-mini", prefix) for prefix in ("net.", "model.", "_orig_mod.", "module._orig_mod.", "lit.net.")),
        *((variant, "lit.net.") for variant in ("efficientat-mini", "htsat-mini", "beats-mini")),
    ],
)
def test_any_common_prefix_is_taken_off(variant, prefix, tmp_path):
    state = backbones.build(variant, num_classes=7).state_dict()
    torch.save({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "x.pt")
    assert [found.name for found in pretrained.recognise(tmp_path / "x.pt", choices(variant))] == [variant]


@pytest.mark.parametrize(
    "envelope",
    [
        lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "epoch": 3},
        lambda s: {"net": s, "epoch": torch.tensor(3), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda s: {"checkpoint": {"weights": s, "options": {"lr": 1.0}}},
        lambda s: {"state_dict": {f"model._orig_mod.{key}": value for key, value in s.items()}},
    ],
)
def test_the_only_set_of_tensors_in_an_envelope_is_read(mini, envelope):
    state = {key: value + 1 for key, value in mini.state_dict().items()}
    key_tree.load_official(mini, envelope(state), ast)
    assert torch.equal(mini.classifier.dense.bias, state["classifier.dense.bias"])


def test_two_sets_of_tensors_of_unknown_name_are_refused(mini):
    state = mini.state_dict()
    with pytest.raises(WeightsError, match="tensors are missing"):
        key_tree.load_official(mini, {"student": state, "teacher": state}, ast)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_at_every_door_with_the_tensors_name(
    far_mini, mini, tmp_path, workspace, value
):
    state = {key: tensor.double() for key, tensor in mini.state_dict().items()}
    state[f"{BODY}.layernorm.weight"][3] = value
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    says = rf"1 of the 192 numbers in {BODY}\.layernorm\.weight is NaN or infinite"
    with pytest.raises(WeightsError, match=rf"x\.safetensors cannot be used: {says}"):
        pretrained.import_weights(far_mini[0], ast, path, workspace)
    with pytest.raises(WeightsError, match=says):
        backbones.open_network("ast-mini", num_classes=7, weights=str(path), workspace=workspace)
    with pytest.raises(WeightsError, match=says):
        backbones.load_official("ast-mini", path)
    assert [found.name for found in pretrained.recognise(path, choices("ast-mini"))] == ["ast-mini"]
    state = mini.state_dict()
    state["classifier.dense.bias"][0] = torch.nan  # the head in a file is never used
    save_file(state, path)
    assert backbones.open_network("ast-mini", num_classes=7, weights=str(path), workspace=workspace)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_truncated_file_is_refused_before_and_at_loading(mini, tmp_path, workspace, name):
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(mini.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="truncated"):
        backbones.open_network("ast-mini", num_classes=7, weights=str(path), workspace=workspace)
    if name.endswith("safetensors"):
        assert "truncated" in backbones.weights_state("ast-mini", workspace, str(path)).message
    with pytest.raises(WeightsError, match="truncated"):
        key_tree.read(path)


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (os.mkdir, ("sprung",))


def test_a_file_with_code_in_it_is_refused_unrun(tmp_path, workspace, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Trap()}, "trap.pth")
    with pytest.raises(WeightsError, match=r"mkdir\).*could run code"):
        backbones.open_network("ast-mini", num_classes=7, weights="trap.pth", workspace=workspace)
    assert not (tmp_path / "sprung").exists()


def test_a_lightning_checkpoint_is_refused_with_a_line_that_converts_it(far_mini, mini, tmp_path, workspace):
    path = tmp_path / "it's Saved_1.ckpt"
    torch.save({"state_dict": mini.state_dict(), "hyper_parameters": argparse.Namespace(lr=1)}, path)
    with pytest.raises(WeightsError, match=r"\(argparse\.Namespace\).*python -c ") as error:
        pretrained.import_weights(far_mini[0], ast, path, workspace)
    words = shlex.split(str(error.value).rpartition("use the new file: ")[2])
    assert words[:2] == ["python", "-c"] and len(words) == 3
    exec(words[2], {})
    made = path.with_suffix(".safetensors")
    assert pretrained.import_weights(far_mini[0], ast, made, workspace).available


@pytest.mark.parametrize("content", [b"", b"hello", json.dumps({"a": 1}).encode(), b"\x02" + b"\0" * 7 + b"[]"])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_file_that_is_no_weights_file_is_refused(tmp_path, workspace, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=r"not a (weights|safetensors) file"):
        backbones.open_network("ast-mini", num_classes=7, weights=str(tmp_path / name), workspace=workspace)


@pytest.mark.parametrize("content", [b"weights: none\n", b"", b"RIFF\x00\x01", b"\x80\x04\x95N.", b"\x80\x02}q\x00."])
def test_nobody_is_advised_to_read_a_file_without_protection(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError) as error:
        key_tree.read(tmp_path / "x.pth")
    assert "x.pth" in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize("content", [b"hello", b"", b"\n<!DOCTYPE html>"])
def test_what_cannot_be_weights_is_known_before_a_run_starts(tmp_path, workspace, content):
    (tmp_path / "x.pth").write_bytes(content)
    state = backbones.weights_state("ast-mini", workspace, str(tmp_path / "x.pth"))
    assert not state.available and "not a weights file" in state.message.replace("not the", "not a")


def test_the_header_of_a_safetensors_file_is_read_only_if_it_is_small(tmp_path, workspace):
    big, deep = tmp_path / "big.safetensors", tmp_path / "deep.safetensors"
    with big.open("wb") as file:
        file.write((3 << 30).to_bytes(8, "little"))
        file.truncate((3 << 30) + 100)  # sparse
    brackets = b"[" * 200_000
    deep.write_bytes(len(brackets).to_bytes(8, "little") + brackets)
    for path in (big, deep):
        assert "is not a safetensors file" in backbones.weights_state("ast-mini", workspace, str(path)).message


def test_a_web_page_under_the_name_of_a_file_is_told(tmp_path, workspace):
    (tmp_path / "x.ckpt").write_text("\n<!DOCTYPE html><html><title>Google Drive</title>")
    with pytest.raises(WeightsError, match="is a web page"):
        pretrained.import_weights(backbones.variant("htsat"), ast, tmp_path / "x.ckpt", workspace)


def test_a_path_that_is_not_there_and_an_empty_folder_are_refused(tmp_path, workspace):
    with pytest.raises(WeightsError, match=r"There is no file .*Set model\.weights"):
        backbones.open_network("ast-mini", num_classes=7, weights=str(tmp_path / "no.safetensors"), workspace=workspace)
    with pytest.raises(WeightsError, match=r"contains no weights file.*model\.safetensors"):
        backbones.open_network("ast-mini", num_classes=7, weights=str(tmp_path), workspace=workspace)


def test_random_weights_say_so(workspace):
    network = backbones.open_network("ast-mini", num_classes=5, weights="random", workspace=workspace)
    assert network.weights_label == "random weights"
    assert backbones.weights_state("ast-base", workspace, "random").label == "random weights"


@pytest.mark.parametrize("name", [name for name, variant in backbones.VARIANTS.items() if variant.embedded])
def test_embedded_weights_load_with_nothing_but_the_package_and_are_small(name, workspace):
    variant, network = backbones.variant(name), backbones.open_network(name, num_classes=9, workspace=workspace)
    assert re.fullmatch(rf"pretrained: {name} \(embedded\), sha256 [0-9a-f]{{12}}", network.weights_label)
    state = backbones.weights_state(name, workspace)
    assert state.path is not None and state.path.stat().st_size <= 8_000_000
    fresh = backbones.open_network(name, num_classes=9, weights="random", workspace=workspace).module.state_dict()
    held = backbones.family(variant).translate(key_tree.read(state.path))
    for key, value in network.module.state_dict().items():
        expected = fresh[key] if key.startswith(f"{variant.head_path}.") else held[key].to(value.dtype)
        assert torch.equal(value, expected), key


# Telling files apart


def choices(*names):
    return [(backbones.variant(name), backbones.family(backbones.variant(name))) for name in names]


def test_a_file_is_recognised_by_its_tensors_among_all_backbones(mini_file):
    assert [v.name for v in pretrained.recognise(mini_file, choices(*backbones.VARIANTS))] == ["ast-mini"]


def test_a_file_of_no_backbone_here_is_compared_with_the_nearest(mini, tmp_path):
    state = mini.state_dict()
    del state[f"{BODY}.layernorm.weight"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(
        WeightsError,
        match=r"any known backbone\. The nearest is ast-mini, with 99 % of .*: 1 of \d+ tensors are miss",
    ):
        pretrained.recognise(tmp_path / "x.safetensors", choices("mn04_as", "ast-mini", "ast-base"))


def test_the_nearest_is_the_one_of_which_most_fits_and_not_the_smallest(tmp_path):
    state = backbones.build("mn04_as", num_classes=7).state_dict()
    state["more.weight"] = torch.ones(2)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"nearest is mn04_as, with 99 % of .*: 1 do not belong .*more\.weight"):
        pretrained.recognise(tmp_path / "x.safetensors", choices("ast-mini", "mn04_as", "mn10_as"))
    save_file({"a.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="None of its tensors has a name and shape of theirs"):
        pretrained.recognise(tmp_path / "x.safetensors", choices("ast-mini", "mn04_as"))


def test_of_two_that_share_a_body_the_head_decides(tmp_path):
    """mn10_as_fc has the trunk of mn10_as, and a new head fits either."""
    save_file(backbones.build("mn10_as", num_classes=5).state_dict(), tmp_path / "x.safetensors")
    found = pretrained.recognise(tmp_path / "x.safetensors", choices("mn10_as_fc", "mn10_as"))
    assert [variant.name for variant in found] == ["mn10_as"]


def test_of_two_trainings_of_one_network_the_published_sha256_decides_or_nobody(far_mini, mini_file, workspace):
    variant, _ = far_mini
    file = mini_file.with_name("net.safetensors")
    file.write_bytes((pretrained.EMBEDDED / "ast-mini" / "model.safetensors").read_bytes())
    twin = dataclasses.replace(variant, name="twin", download=dataclasses.replace(variant.download, sha256="0" * 64))
    both = [(twin, ast), (variant, ast)]
    assert pretrained.recognise(mini_file, both) == [twin, variant]
    assert pretrained.recognise(file, both) == [variant]
    with pytest.raises(WeightsError, match=r"published file of far-mini \(by its sha256\), not of twin"):
        pretrained.import_weights(twin, ast, file, workspace, known=[variant, twin])


def test_a_beats_file_trained_with_other_settings_is_refused_although_every_tensor_fits(monkeypatch):
    """Its `cfg` says so: a tensor's shape would not."""
    variant = backbones.variant("beats")
    with torch.device("meta"):
        network = beats.networks().network(variant, 2, 0)
    monkeypatch.setattr(beats, "translate", dict)
    state = dict(network.state_dict())
    good = {"deep_norm": True, "relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 800}
    good["input_patch_size"] = 16
    assert key_tree.fitted(network, {"cfg": good, "model": state}, beats, variant)
    with pytest.raises(WeightsError, match="other settings: max_distance is 1280 in the file, not 800"):
        key_tree.fitted(network, {"cfg": {**good, "max_distance": 1280}, "model": state}, beats, variant)
    with torch.device("meta"), pytest.raises(WeightsError, match="other settings: max_distance is 1280"):
        backbones.load_official("beats", {"cfg": {**good, "max_distance": 1280}, "model": state})


# Verifying


def test_verify_notices_a_changed_byte(far_mini, workspace):
    variant, _ = far_mini
    pretrained.fetch(variant, ast, workspace)
    here = pretrained.stored(variant, workspace)
    assert pretrained.verify(variant, ast, here) == ""
    damage(here.path)
    assert re.search(r"has changed: its sha256 is [0-9a-f]{12}\.\.\., but was", pretrained.verify(variant, ast, here))


def test_verify_notices_a_file_put_there_by_hand_that_does_not_fit(far_mini, workspace, foreign_file):
    variant, _ = far_mini
    folder = workspace.weights / variant.name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(foreign_file.read_bytes())
    here = pretrained.stored(variant, workspace)
    assert here.origin == "put there by hand" and here.recorded is None
    assert "does not fit far-mini" in pretrained.verify(variant, ast, here)
    (folder / "model.safetensors").write_bytes(foreign_file.read_bytes()[:-1])
    assert "truncated" in pretrained.verify(variant, ast, pretrained.stored(variant, workspace))
