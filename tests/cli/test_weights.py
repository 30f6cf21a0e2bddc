"""`python -m sousa_engine weights`: what it prints, its exit codes, its bar, its children."""

import dataclasses
import fcntl
import hashlib
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from click.testing import CliRunner
from file_server import FileServer
from safetensors.torch import save_file

from sousa_engine import backbones
from sousa_engine.backbones import Download, downloads, pretrained
from sousa_engine.cli.main import main
from sousa_engine.runs import background
from sousa_engine.workspace import intake

MINI = pretrained.EMBEDDED / "ast-mini" / "model.safetensors"
MAIN = """
import dataclasses, signal, sys
from sousa_engine import backbones
from sousa_engine.backbones import Download, downloads
from sousa_engine.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in a shell's background
downloads.PAUSE_S = 0.0
download = Download(page="https://example.org/page", file="net.safetensors", url=sys.argv.pop(1))
mini = dataclasses.replace(backbones.variant("ast-mini"), name="far-mini", embedded=False, download=download)
backbones.VARIANTS["far-mini"] = mini
main()
"""


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    monkeypatch.setattr(downloads, "answers", {})
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    server = FileServer(MINI.read_bytes())
    yield server
    server.close()


@pytest.fixture
def far_mini(server, monkeypatch):
    """ast-mini as if its weights were not in the package but on the server, beside all other variants."""
    download = Download(
        page="https://example.org/page",
        file="net.safetensors",
        url=f"{server.url}/net",
        size_bytes=len(server.content),
        sha256=hashlib.sha256(server.content).hexdigest(),
        note="A note.",
    )
    variant = dataclasses.replace(backbones.variant("ast-mini"), name="far-mini", embedded=False, download=download)
    monkeypatch.setitem(backbones.VARIANTS, variant.name, variant)
    return variant


@pytest.fixture
def weights(workspace):
    def call(*words):
        return CliRunner().invoke(main, ["--workspace", str(workspace.root), "weights", *map(str, words)])

    return call


def test_list_is_a_table_of_every_backbone_that_fits_80_columns(weights, far_mini):
    lines = weights("list").output.splitlines()
    assert lines[0].split() == ["BACKBONE", "HERE", "SIZE", "LICENCE", "FROM"]
    assert [line.split()[0] for line in lines[1:]] == list(backbones.VARIANTS)
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert rows["ast-mini"] == "embedded 5.2 MB MIT this package"
    assert rows["ast-base"] == "not here 346.4 MB BSD-3-Clause huggingface.co"
    assert rows["htsat-audioset"] == "not here ? MIT drive.google.com, by hand"
    assert rows["far-mini"].startswith("not here 5.2 MB MIT 127.0.0.1:")


def test_list_of_one_shows_page_link_sha256_and_what_is_here(weights, far_mini, workspace):
    card = weights("list", "far-mini").output
    for text in ("https://example.org/page", far_mini.download.url, far_mini.download.sha256, "A note.", "not here"):
        assert text in card
    assert weights("fetch", "far-mini").exit_code == 0
    card = weights("list", "far-mini").output
    assert f"downloaded from {far_mini.download.url}" in card and str(workspace.weights / "far-mini") in card
    assert card.count(far_mini.download.sha256) == 2
    everything = weights("list", "-v").output
    assert card in everything and everything.count("\nlicence ") == len(backbones.VARIANTS)
    assert "downloaded" in next(line for line in weights("list").output.splitlines() if "far-mini" in line)


def test_fetch_tells_its_progress_in_lines_where_there_is_no_terminal(weights, far_mini, workspace):
    done = weights("fetch", "far-mini")
    assert done.exit_code == 0, done.output
    steps = [line for line in done.stderr.splitlines() if line.startswith("far-mini: downloading")]
    assert steps[0] == "far-mini: downloading 0.0 MB of 5.2 MB" and len(steps) == 11
    assert steps[-1] == "far-mini: downloading 5.2 MB of 5.2 MB" and "far-mini: checking its tensors" in done.stderr
    assert far_mini.download.sha256 in done.stdout
    assert str(workspace.weights / "far-mini" / "model.safetensors") in done.stdout


def test_what_a_broken_fetch_left_is_listed_and_used(weights, far_mini, server):
    server.cuts = [1_000_000] + [0] * downloads.TRIES
    broken = weights("fetch", "far-mini")
    assert broken.exit_code == 2 and "1,000,000 bytes are kept" in broken.stderr
    assert "1.0 MB of it" in weights("list").output
    assert weights("fetch", "far-mini").exit_code == 0
    assert server.gets[-1]["Range"] == "bytes=1000000-"


def test_ctrl_c_leaves_a_part_and_says_so(server, workspace, far_mini):
    server.free = 1_000_000
    server.gate.clear()
    words = ["--workspace", str(workspace.root), "weights", "fetch", "far-mini"]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, far_mini.download.url, *words], stderr=subprocess.PIPE, text=True
    )
    folder = pretrained.intake_folder(far_mini, workspace)
    while downloads.kept(far_mini.download, folder) < server.free:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 3
    assert told.splitlines()[-1] == "Stopped. 1.0 MB are kept; run the same command again to continue."
    assert "Traceback" not in told
    assert intake.look(folder).error == intake.STOPPED


def test_a_terminal_gets_a_bar(workspace, far_mini, monkeypatch):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    words = ["--workspace", str(workspace.root), "weights", "fetch", "far-mini"]
    blocks = []
    reader = threading.Thread(target=lambda: blocks.extend(iter(lambda: read_pty(ours), b"")))
    reader.start()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        main(words, standalone_mode=False)
    reader.join()
    os.close(ours)
    seen = b"".join(blocks)
    assert b"%|" in seen and b"B/s" in seen and b"far-mini: downloading" in seen


def read_pty(handle):
    try:
        return os.read(handle, 65536)
    except OSError:  # Linux says EIO when the other side is closed
        return b""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["fetch", "ast-mni"], "ast-mini"),
        (["fetch", "ast-mini"], "come with this package"),
        (["fetch", "htsat"], "no direct link"),
        (["fetch"], "BACKBONE"),
        (["import", "/no/such/file.ckpt"], "/no/such/file.ckpt"),
        (["import", "/no/such/file.ckpt", "--as", "bets"], "beats"),
        (["verify", "ast-base"], "No weights of ast-base"),
        (["list", "ast-bsae"], "ast-base"),
        (["ftch"], "fetch"),
    ],
)
def test_a_mistake_exits_2_with_one_line(weights, words, named):
    result = weights(*words)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error:") and named in lines[0]


def test_offline_exits_2_at_once_with_the_way_by_hand(weights, far_mini, server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = weights("fetch", "far-mini")
    assert result.exit_code == 2 and "HF_HUB_OFFLINE" in result.stderr and "weights import FILE" in result.stderr
    assert server.paths == []


def test_a_workspace_still_to_be_made_lists_what_the_package_has(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUSA_WORKSPACE", str(tmp_path / "new"))
    result = CliRunner().invoke(main, ["weights", "list"])
    assert result.exit_code == 0 and "embedded" in result.output and not (tmp_path / "new").exists()


def test_a_mistyped_workspace_is_not_made(tmp_path):
    result = CliRunner().invoke(main, ["--workspace", str(tmp_path / "nope"), "weights", "list"])
    assert result.exit_code == 2 and not (tmp_path / "nope").exists()


@pytest.fixture
def trained(tmp_path):
    """A file that is nobody's published one, of ast-mini's network."""
    file = tmp_path / "mine.safetensors"
    save_file(backbones.build("ast-mini", num_classes=4, seed=5).state_dict(), file)
    return file


def test_import_finds_the_backbone_by_the_files_tensors(weights, workspace, tmp_path):
    file = tmp_path / "unnamed.safetensors"
    save_file(backbones.build("mn04_as", num_classes=4).state_dict(), file)
    result = weights("import", file)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"mn04_as: imported from {file}, sha256 ")
    assert backbones.weights_state("mn04_as", workspace).path == workspace.weights / "mn04_as" / "model.safetensors"


def test_import_asks_whose_it_is_where_the_tensors_fit_several(weights, far_mini, trained, workspace):
    result = weights("import", trained)
    assert result.exit_code == 2
    assert "fit 2 backbones" in result.stderr and "--as ast-mini or --as far-mini" in result.stderr
    assert pretrained.stored(far_mini, workspace) is None
    assert weights("import", trained, "--as", "far-mini").exit_code == 0
    assert pretrained.stored(far_mini, workspace).recorded == downloads.sha256(trained)
    assert "does not fit ast-base" in weights("import", trained, "--as", "ast-base").stderr


def test_verify_says_ok_of_everything_here_and_exits_1_once_a_byte_is_wrong(weights, far_mini, trained, workspace):
    assert weights("import", trained, "--as", "far-mini").exit_code == 0
    fine = weights("verify")
    assert fine.exit_code == 0
    embedded = [name for name, variant in backbones.VARIANTS.items() if variant.embedded]
    assert [line.split()[:2] for line in fine.output.splitlines()] == [["ok", name] for name in [*embedded, "far-mini"]]
    file = pretrained.stored(far_mini, workspace).path
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    wrong = weights("verify")
    assert wrong.exit_code == 1
    assert (
        wrong.output.splitlines()[-1].startswith(f"1 of {len(embedded) + 1} are wrong")
        and "WRONG  far-mini" in wrong.output
    )
    assert "has changed: its sha256" in wrong.output
    assert weights("verify", "ast-mini").exit_code == 0


# What a page starts


def ended(folder):
    """Wait for the intake in `folder`, and say how it ended."""
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    return intake.look(folder)


def test_a_started_import_outlives_its_caller_and_all_of_its_group(workspace, tmp_path):
    variant = backbones.variant("mn04_as")
    file = tmp_path / "x.safetensors"
    save_file(backbones.build("mn04_as", num_classes=4).state_dict(), file)
    code = (
        "import sys; from pathlib import Path; from sousa_engine import backbones;"
        "from sousa_engine.runs import background;"
        "from sousa_engine.workspace import Workspace;"
        "print(background.take_in_weights(Workspace(root=Path(sys.argv[1])), backbones.variant('mn04_as'),"
        " ('import', sys.argv[2], '--as', 'mn04_as')), flush=True); sys.stdin.read()"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.root), str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert caller.stdout.readline() == "True\n"
    os.killpg(caller.pid, signal.SIGKILL)
    caller.communicate()
    assert ended(pretrained.intake_folder(variant, workspace)) is None
    assert pretrained.stored(variant, workspace).origin == f"imported from {file}"


def test_only_one_is_started_and_its_refusal_can_be_read(workspace, tmp_path):
    variant = backbones.variant("mn04_as")
    folder = pretrained.intake_folder(variant, workspace)
    (tmp_path / "x.pt").write_text("<html>Sign in</html>")
    with intake.taking_in(folder):
        assert not background.take_in_weights(workspace, variant, ("fetch", "mn04_as"))
    assert background.take_in_weights(workspace, variant, ("import", str(tmp_path / "x.pt"), "--as", "mn04_as"))
    assert intake.look(folder).is_running
    seen = ended(folder)
    assert "is a web page" in seen.error and not seen.is_running
    deadline = time.monotonic() + 60  # it lets go of the lock, then prints
    while "is a web page" not in (folder / intake.LOG).read_text():
        assert time.monotonic() < deadline, (folder / intake.LOG).read_text()
        time.sleep(0.05)


def test_a_workspace_that_cannot_be_written_to_is_told(workspace):
    workspace.runs.write_text("a file where a folder should be")
    with pytest.raises(backbones.WeightsError, match="cannot be written to"):
        background.take_in_weights(workspace, backbones.variant("mn04_as"), ("fetch", "mn04_as"))
