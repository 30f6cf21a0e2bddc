"""The counter of kills for want of memory, in every place that Linux keeps it."""

from __future__ import annotations

import pytest

from sousa_engine.workspace import oom


@pytest.fixture
def machine(tmp_path):
    """machine(cgroup lines, {file below /sys/fs/cgroup: text}, vmstat): what `oom.kills` finds there."""

    def kills(lines, files=(), vmstat=None):
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        if lines is not None:
            (proc / "self" / "cgroup").write_text(lines)
        if vmstat is not None:
            (proc / "vmstat").write_text(vmstat)
        for name, text in dict(files).items():
            (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
            (cgroups / name).write_text(text)
        return oom.kills(proc, cgroups)

    return kills


EVENTS = "low 0\nhigh 3\nmax 41\noom 2\noom_kill {}\noom_group_kill 9\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


def test_its_own_cgroup_counts(machine):
    files = {"user/us/memory.events": EVENTS.format(4), "memory.events": EVENTS.format(7)}
    assert machine("0::/user/us\n", files, "oom_kill 8\n") == (4, "cgroup")


def test_in_a_container_its_cgroup_is_the_root_that_it_sees(machine):
    assert machine("0::/docker/a1b2\n", {"memory.events": EVENTS.format(2)}) == (2, "cgroup")


def test_the_older_cgroups_count_too(machine):
    lines = "9:name=systemd:/\n4:cpu,memory:/us\n0::/\n"
    assert machine(lines, {"memory/us/memory.oom_control": CONTROL.format(5)}) == (5, "cgroup")


def test_a_kernel_that_does_not_count_there_counts_for_the_machine(machine):
    files = {"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}
    assert machine("4:memory:/\n", files, "pgfault 12\noom_kill 3\n") == (3, "machine")


def test_where_nobody_counts_nothing_is_made_up(machine):
    assert machine(None) is None
