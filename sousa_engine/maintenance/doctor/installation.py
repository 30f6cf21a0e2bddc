"""Checks of this installation: Python, packages, PyTorch and what it can use."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from sousa_engine.maintenance import torch_facts
from sousa_engine.maintenance.doctor import child
from sousa_engine.maintenance.doctor.findings import Finding
from sousa_engine.maintenance.torch_facts import Device, TorchFacts

_INSTALL = "Run `make app`, or: python -m pip install -r requirements.txt"
TORCH_LIMIT_S = 90.0
_REPAIRED_SQLITE: dict[tuple[int, ...], tuple[int, ...]] = {(3, 44): (3, 44, 6), (3, 50): (3, 50, 7)}
_PINNED = re.compile(r"([\w.-]+)==([\w.+!-]+)")


def program(version: str, root: Path) -> Finding:
    return Finding(name="SOUSA engine", level="ok", text=f"{version}, workspace {root}")


def python(version: Sequence[int], executable: str) -> Finding:
    text = f"{'.'.join(map(str, version))}, {executable}"
    if (3, 11) <= tuple(version[:2]) <= (3, 13):
        return Finding(name="Python", level="ok", text=text)
    fix = "Use Python 3.11, 3.12 or 3.13: make app PYTHON=python3.12"
    return Finding(name="Python", level="problem", text=text, fix=fix)


def sqlite(version: tuple[int, ...]) -> Finding:
    """Source: https://sqlite.org/wal.html, "The WAL-reset bug"; fixed in 3.51.3 and in releases of two older lines."""
    text = ".".join(map(str, version))
    if version >= _REPAIRED_SQLITE.get(version[:2], (3, 51, 3)):
        return Finding(name="SQLite", level="ok", text=text)
    return Finding(
        name="SQLite",
        level="warning",
        text=f"{text} has a rare race (WAL reset) that can damage a database while two programs write to it",
        fix="Use a Python with SQLite 3.51.3 or later. Until then, do not edit runs.db with other programs while runs "
        "are active, and keep copies: python -m sousa_engine db backup",
    )


def packages(requirements: str, installed: Callable[[str], str | None]) -> tuple[Finding, ...]:
    """One line for all packages that match their pin, and one for each that does not. A build tag (+cpu) is ignored."""
    found, right = [], 0
    for name, pin in _PINNED.findall(requirements):
        here = installed(name)
        if here == pin or (here or "").partition("+")[0] == pin:
            right += 1
        elif here is None:
            text = f"{name} {pin} is not installed"
            found.append(Finding(name=f"Package {name}", level="problem", text=text, fix=_INSTALL))
        else:
            text = f"{name} {here} is installed; this program was tested with {pin}"
            found.append(Finding(name=f"Package {name}", level="warning", text=text, fix=_INSTALL))
    text = f"{right} of {right + len(found)} match requirements.txt"
    return (Finding(name="Packages", level="ok", text=text), *found)


def torch_build(facts: TorchFacts | None, trouble: str, *, gpus: int) -> Finding:
    """gpus: number of NVIDIA GPUs that the driver shows, whether or not PyTorch can use them."""
    name = "PyTorch"
    if facts is None:
        return Finding(name=name, level="problem", text=trouble, fix=f"No run can train without it. {_INSTALL}")
    build = f"built for CUDA {facts.cuda}" if facts.cuda else "with MPS" if facts.mps else "CPU build"
    text = f"{facts.version}, {build}"
    seen = f"; {gpus} NVIDIA {'GPU' if gpus == 1 else 'GPUs'} found"
    if gpus and facts.cuda is None:
        fix = "Install PyTorch for CUDA (https://pytorch.org/get-started), or keep using the CPU."
        return Finding(name=name, level="warning", text=text + seen, fix=fix)
    if gpus and not facts.devices:
        fix = (
            "The driver may be too old for this CUDA version: compare with nvidia-smi. CUDA_VISIBLE_DEVICES may also "
            "hide the GPU."
        )
        return Finding(
            name=name,
            level="warning",
            text=f"{text}{seen}, but PyTorch cannot use {'it' if gpus == 1 else 'any of them'}",
            fix=fix,
        )
    return Finding(name=name, level="ok", text=text)


def torchaudio(facts: TorchFacts) -> Finding:
    texts = {
        "": "works",
        "without extension": "works, without its compiled extension (not needed)",
    }
    if facts.torchaudio in texts:
        return Finding(name="torchaudio", level="ok", text=texts[facts.torchaudio])
    if facts.torchaudio == "guarded":
        text = (
            "works here; its compiled extension does not match this PyTorch, so a script that imports peft or "
            "transformers before sousa_engine fails"
        )
        fix = "Remove the extension, which is not needed: python -m sousa_engine.maintenance.torchaudio_repair"
        return Finding(name="torchaudio", level="warning", text=text, fix=fix)
    text = f"cannot be imported: {facts.torchaudio}"
    return Finding(name="torchaudio", level="problem", text=text, fix=f"AST backbones need it. {_INSTALL}")


def devices(facts: TorchFacts, memory: object) -> Finding:
    """memory: as returned by psutil.virtual_memory()."""
    total, free = (getattr(memory, name) >> 20 for name in ("total", "available"))
    cpu = f"cpu: {total:,} MiB of memory, {free:,} MiB free"
    text = "; ".join([*map(_device_text, facts.devices), cpu])
    if free < 1024:
        fix = "A run needs at least 1 GiB: close other programs, or stop other runs."
        return Finding(name="Devices", level="warning", text=text, fix=fix)
    return Finding(name="Devices", level="ok", text=text)


def _device_text(device: Device) -> str:
    free = "" if device.free_mib is None else f", {device.free_mib:,} MiB free"
    return f"{device.name}: {device.title}, {device.memory_mib:,} MiB{free}"


def bf16(facts: TorchFacts) -> Finding:
    """Always ok: float32 runs everywhere. The text says where training.precision=bf16 is worth it."""
    texts = {True: "in hardware", False: "not in hardware (use float32)", None: "unknown"}
    known = [*((device.name, device.bf16) for device in facts.devices), ("cpu", facts.cpu_bf16)]
    return Finding(name="bf16", level="ok", text="; ".join(f"{name}: {texts[has]}" for name, has in known))


def threads(used: int | None, cores: int, environment: Mapping[str, str]) -> Finding:
    text = f"available cores: {cores}" + (f", PyTorch threads: {used}" if used else "")
    if used and used > cores:
        fix = f"More threads than cores slow each other down: set OMP_NUM_THREADS={cores}."
        return Finding(name="CPU", level="warning", text=text, fix=fix)
    if used and used < cores / 2 and "OMP_NUM_THREADS" in environment:
        fix = f"OMP_NUM_THREADS={environment['OMP_NUM_THREADS']} limits PyTorch: unset it for runs on the CPU."
        return Finding(name="CPU", level="warning", text=text, fix=fix)
    return Finding(name="CPU", level="ok", text=text)


def load(per_minute: float | None, cores: int) -> Finding:
    """per_minute: processes that computed or waited for a core, on average over the last minute; None if unknown."""
    name = "Load"
    if per_minute is None:
        return Finding(name=name, level="ok", text="unknown: this system does not count it")
    text = f"{per_minute:.1f} on {cores} {'core' if cores == 1 else 'cores'} in the last minute, active runs included"
    if per_minute <= cores:
        return Finding(name=name, level="ok", text=text)
    fix = (
        "More programs compute than there are cores, so runs on the CPU take longer. Close other programs; if several "
        "runs train at once, let fewer do so: python -m sousa_engine queue slots 1"
    )
    return Finding(name=name, level="warning", text=text, fix=fix)


def load_of_last_minute() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def text_encoding(files: str, preferred: str) -> Finding:
    """files: encoding of file names. preferred: encoding of text files that name none."""
    text = f"file names: {files}, text: {preferred}"
    if all(re.sub(r"[^a-z0-9]", "", name.lower()) in ("utf8", "utf8mb4") for name in (files, preferred)):
        return Finding(name="Text encoding", level="ok", text=text)
    fix = "Non-ASCII names may fail: set LANG to a UTF-8 locale such as C.UTF-8, or PYTHONUTF8=1."
    return Finding(name="Text encoding", level="warning", text=text, fix=fix)


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def look_at_torch(command: Sequence[str], limit_s: float = TORCH_LIMIT_S) -> tuple[TorchFacts | None, str]:
    """(facts, "") or (None, what went wrong): PyTorch is missing, broken, killed by a signal, or takes too long."""
    answer = child.run(command, limit_s, group=False)
    if answer.code is None:
        return None, f"importing it took more than {limit_s:.0f} s"
    if answer.code < 0:
        name = signal.Signals(-answer.code).name
        return None, f"importing it ended the process with {name}: a build for another CPU or driver"
    try:
        return torch_facts.from_json(answer.output.strip().splitlines()[-1]), ""
    except (ValueError, KeyError, TypeError, IndexError):
        return None, f"it cannot be imported: {answer.last_error(f'exit code {answer.code}, no error message')}"


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
