"""How often the system killed a process because memory ran out: a counter of its cgroup.

To a parent, SIGKILL for lack of memory and `kill -9` look the same. The counter, read before and after, tells them
apart. Standard library only: the keeper imports this.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Count(NamedTuple):
    """whose: "cgroup" counts only the processes of our cgroup, "machine" all of them."""

    kills: int
    whose: str


def kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> Count | None:
    """Processes of our cgroup that were killed for lack of memory so far; None if there is no counter.

    From memory.events (cgroup v2) or memory.oom_control (v1); for a process without a cgroup, from the machine's
    counter in /proc/vmstat. Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "oom_kill".
    """
    for file, whose in (*((file, "cgroup") for file in _counters(proc, cgroups)), (proc / "vmstat", "machine")):
        found = _oom_kill(file)
        if found is not None:
            return Count(found, whose)
    return None


def _counters(proc: Path, cgroups: Path) -> list[Path]:
    """The files of our cgroup. Inside a container its path often differs: then it is the root there."""
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
