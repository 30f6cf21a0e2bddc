"""How often the system killed a process of ours for want of memory: a counter that its cgroup keeps.

SIGKILL for want of memory and `kill -9` look the same to a parent. The counter tells them apart: it is read before and
after. Standard library only: the keeper imports this.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Count(NamedTuple):
    """whose: "cgroup", of ours alone; or "machine", of anybody's processes."""

    kills: int
    whose: str


def kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> Count | None:
    """Processes of this process's cgroup that were killed for want of memory so far; None where nobody counts.

    From memory.events (cgroup v2), memory.oom_control (v1), or else, for a process in no cgroup of its own, from the
    whole machine's count in /proc/vmstat. Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "oom_kill".
    """
    for file, whose in (*((file, "cgroup") for file in _counters(proc, cgroups)), (proc / "vmstat", "machine")):
        found = _oom_kill(file)
        if found is not None:
            return Count(found, whose)
    return None


def _counters(proc: Path, cgroups: Path) -> list[Path]:
    """The files of our own cgroup. In a container its path is often another one inside: then it is the root there."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            bases, name = [cgroups, cgroups / "unified"], "memory.events"
        elif "memory" in controllers.split(","):
            bases, name = [cgroups / "memory"], "memory.oom_control"
        else:
            continue
        found += [base / path.lstrip("/") / name for base in bases] + [base / name for base in bases]
    return found


def _oom_kill(file: Path) -> int | None:
    try:
        text = file.read_text()
    except OSError:
        return None
    counts = [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["oom_kill"]]
    return int(counts[0]) if counts else None
