"""A lock has one holder, and looking whether it is held gets in nobody's way."""

from __future__ import annotations

import fcntl
import os
import sys
import threading

from sousa_engine.workspace import Workspace, locks


def test_a_lock_has_one_holder_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    lock = locks.take(path)
    assert lock is not None and locks.is_held(path) and locks.take(path) is None
    os.close(lock)
    assert not locks.is_held(path)


def test_a_lock_names_its_holder_and_never_the_one_before(tmp_path):
    path = tmp_path / "lock"
    assert locks.signed_by(path) is None
    path.write_text("4711\n")
    lock = locks.take(path)
    assert lock is not None and locks.signed_by(path) is None
    locks.sign(lock)
    assert locks.signed_by(path) == os.getpid()
    os.close(lock)


def test_who_only_looks_keeps_nobody_from_taking_a_free_lock(tmp_path):
    """`is_held` locks the file too, for a moment: here it is held up in the middle of that."""
    path = tmp_path / "lock"
    looking = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.02, os.close, [looking]).start()
    lock = locks.take(path)
    assert lock is not None
    os.close(lock)


def test_only_the_account_of_the_workspace_can_lock_it(tmp_path):
    old, new = tmp_path / "old.lock", tmp_path / "new.lock"
    old.write_text("")
    old.chmod(0o644)
    for path in (old, new):
        lock = locks.take(path)
        assert lock is not None and path.stat().st_mode & 0o777 == 0o600
        if sys.platform == "linux":
            assert locks.holders(path) == (os.getpid(),)
        os.close(lock)
        assert locks.holders(path) == ()


def test_a_new_workspace_is_private_and_an_existing_folder_stays_as_it_is(tmp_path):
    tmp_path.chmod(0o755)
    workspace = Workspace(root=tmp_path / "new" / "place")
    workspace.make()
    assert [folder.stat().st_mode & 0o777 for folder in (workspace.root, workspace.runs)] == [0o700] * 2
    assert tmp_path.stat().st_mode & 0o777 == 0o755
