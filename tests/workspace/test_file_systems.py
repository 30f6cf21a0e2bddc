"""A workspace on a network file system is refused with the reason, unless somebody says the risk aloud."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from streamlit.testing.v1 import AppTest

from sousa_engine.cli import main
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import WorkspaceError
from sousa_engine.maintenance import check, rebuild
from sousa_engine.store import Store
from sousa_engine.workspace import PROJECT_ROOT, Workspace, file_systems

Mount = namedtuple("Mount", "device mountpoint fstype opts")


@pytest.fixture
def mounts(monkeypatch):
    """mounts("/mnt/nas", "nfs4"): there is such a mount, among the usual ones."""
    made = [Mount("/dev/sda1", "/", "ext4", ""), Mount("proc", "/proc", "proc", "")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: list(made))
    file_systems.network_trouble.cache_clear()
    yield lambda point, kind: made.append(Mount("nas:/export", str(point), kind, "rw"))
    file_systems.network_trouble.cache_clear()


@pytest.mark.parametrize(
    "kind",
    [
        *("nfs", "nfs4", "NFS", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "webdav"),
        *("fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.extrafs", "fuse", "macfuse"),
    ],
)
def test_shared_file_systems_are_known(kind):
    assert file_systems.is_network(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *("ext4", "xfs", "btrfs", "zfs", "apfs", "overlay", "tmpfs", "virtiofs", "nfsd", ""),
        *("fuseblk", "fuse.ext4", "fuse.ntfs-3g", "fuse.fuse-overlayfs", "fuse.gocryptfs"),
    ],
)
def test_file_systems_of_this_machine_pass(kind):
    assert not file_systems.is_network(kind)


def test_the_nearest_mount_counts_also_for_a_folder_that_is_not_there_yet(mounts, tmp_path):
    mounts(tmp_path / "nas", "nfs4")
    mounts(tmp_path / "nas" / "local", "xfs")
    assert file_systems.kind_of(tmp_path) == "ext4"
    assert file_systems.kind_of(tmp_path / "nas-not") == "ext4"
    (tmp_path / "nas" / "local").mkdir(parents=True)
    assert file_systems.kind_of(tmp_path / "nas" / "new" / "folder") == "nfs4"
    assert file_systems.kind_of(tmp_path / "nas" / "local" / "new") == "xfs"
    mounts(tmp_path / "nas" / "local", "cifs")  # mounted over it
    assert file_systems.kind_of(tmp_path / "nas" / "local") == "cifs"


def test_where_mounts_cannot_be_read_nothing_is_refused(monkeypatch, tmp_path):
    def secret(all):
        raise PermissionError("no")

    monkeypatch.setattr(psutil, "disk_partitions", secret)
    assert file_systems.kind_of(tmp_path) == ""


def test_a_workspace_on_a_network_file_system_is_refused_by_every_verb(mounts, workspace):
    mounts(workspace.root, "nfs4")
    for verb in (Store.open, lambda w: Store.open(w, readonly=True), check.check, check.backup, rebuild.rebuild):
        with pytest.raises(WorkspaceError, match=r"is on nfs4, .* Set SOUSA_WORKSPACE .*=runs-may-be-lost"):
            verb(workspace)
    assert list(workspace.root.iterdir()) == []


def test_runs_moved_to_a_network_drive_by_a_link_are_refused_too(mounts, tmp_path):
    nas, root = tmp_path / "nas", tmp_path / "here"
    nas.mkdir()
    root.mkdir()
    (root / "runs").symlink_to(nas)
    mounts(nas, "fuse.sshfs")
    with pytest.raises(WorkspaceError, match=r"here/runs is on fuse\.sshfs"):
        Store.open(Workspace(root=root))


@pytest.mark.parametrize("value", ["1", "yes", "true", ""])
def test_a_word_that_does_not_say_the_risk_changes_nothing(mounts, workspace, monkeypatch, value):
    mounts(workspace.root, "9p")
    monkeypatch.setenv("SOUSA_NETWORK_WORKSPACE", value)
    with pytest.raises(WorkspaceError, match="is on 9p"):
        Store.open(workspace)


def test_who_says_the_risk_may_go_on_and_is_told_so_on_every_page_and_in_the_terminal(mounts, workspace, monkeypatch):
    mounts(workspace.root, "cifs")
    monkeypatch.setenv("SOUSA_NETWORK_WORKSPACE", "runs-may-be-lost")
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    with Store.open(workspace) as store:
        store.runs.enqueue(RunConfig(name="on the NAS"))
    app = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=60).run()
    assert any("is on cifs" in warning.value for warning in app.warning)
    listed = CliRunner().invoke(main.main, ["runs"])
    assert listed.exit_code == 0 and "on the NAS" in listed.output
    assert "warning: " in listed.stderr and "is on cifs" in listed.stderr


def test_the_pages_of_a_refused_workspace_say_why(mounts, workspace, monkeypatch):
    mounts(workspace.root, "nfs")
    monkeypatch.setenv("SOUSA_WORKSPACE", str(workspace.root))
    app = AppTest.from_file(str(PROJECT_ROOT / "sousa_engine" / "web" / "main.py"), default_timeout=60).run()
    app.switch_page(str(PROJECT_ROOT / "pages" / "runs.py")).run()
    assert not app.exception
    assert any("is on nfs" in error.value for error in app.error)


def test_this_very_workspace_can_be_used():
    assert not file_systems.is_network(file_systems.kind_of(Path.cwd()))
