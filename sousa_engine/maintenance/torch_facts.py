"""Facts about PyTorch and this machine, as JSON: `python -m sousa_engine.maintenance.torch_facts`.

A separate process, because importing PyTorch costs seconds and 300 MiB, and can crash the process.
"""

from __future__ import annotations

import importlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from sousa_engine.core import torchaudio_guard

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "avx10_1"}  # x86 and ARM, as Linux names them


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator. bf16: whether it computes bfloat16 in hardware; None if unknown."""

    name: str
    title: str
    memory_mib: int
    free_mib: int | None
    bf16: bool | None


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """cuda: the CUDA version that PyTorch was built for, None for a CPU build. cpu_bf16: None if unknown.

    torchaudio: "" if it works, "without extension" if only its compiled extension is missing, "guarded" if the
    extension is there and cannot be loaded (then it works after `import sousa_engine` alone), else what went wrong.
    """

    version: str
    cuda: str | None
    mps: bool
    devices: tuple[Device, ...]
    cpu_bf16: bool | None
    threads: int
    torchaudio: str


def from_json(text: str) -> TorchFacts:
    """The facts that `main` printed. Raises ValueError, KeyError or TypeError for any other text."""
    values = json.loads(text)
    return TorchFacts(**values | {"devices": tuple(Device(**device) for device in values["devices"])})


def cpu_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether this CPU computes bfloat16 in hardware; None if the system does not say."""
    try:
        words = set(cpuinfo.read_text(errors="replace").split())
    except OSError:
        return None
    return bool(words & _BF16_FLAGS)


def main() -> None:
    import torch

    found = [_cuda(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = torch.backends.mps.is_available()
    if mps:
        memory = torch.mps.recommended_max_memory() // 2**20
        found.append(Device(name="mps", title=platform.machine(), memory_mib=memory, free_mib=None, bf16=None))
    facts = TorchFacts(
        version=torch.__version__,
        cuda=torch.version.cuda,
        mps=mps,
        devices=tuple(found),
        cpu_bf16=cpu_bf16(),
        threads=torch.get_num_threads(),
        torchaudio=_torchaudio(),
    )
    print(json.dumps(asdict(facts)))


def _cuda(index: int) -> Device:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    title = torch.cuda.get_device_name(index)
    return Device(name=f"cuda:{index}", title=title, memory_mib=total >> 20, free_mib=free >> 20, bf16=bf16)


def _torchaudio() -> str:
    try:
        package = importlib.import_module("torchaudio")
    except Exception as error:  # the error of the import is the finding
        return " ".join(str(error).split()) or type(error).__name__
    if torchaudio_guard.failures:
        return "guarded"
    return "" if package._extension._IS_TORCHAUDIO_EXT_AVAILABLE else "without extension"


if __name__ == "__main__":
    main()
