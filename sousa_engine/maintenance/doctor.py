"""What is right and what is wrong with this installation: one small check a line, each with its cure.

A check is a pure function of what it judges and returns a Finding, so that a test can make each of them say no.
`examine` gathers the facts of this machine and calls them all; it writes nothing, and never imports PyTorch: that is
looked at by a process of its own (torch_facts), whose crash is a finding too.
"""

from __future__ import annotations

import errno
import json
import locale
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from sousa_engine import __version__, backbones
from sousa_engine.backbones import downloads, pretrained
from sousa_engine.core.errors import RunError, WorkspaceError
from sousa_engine.maintenance import check, torch_facts
from sousa_engine.maintenance.torch_facts import Device, TorchFacts
from sousa_engine.store import Store, migrations
from sousa_engine.workspace import LEAST_FREE_BYTES, PROJECT_ROOT, Workspace, file_systems, locks

Level = Literal["ok", "warning", "problem"]
LITTLE_FREE_BYTES = 2 << 30  # a published backbone and some runs with their checkpoints
TORCH_LIMIT_S, WHOLE_LIMIT_S = 90.0, 150.0
ADDRESS_PATIENCE_S = 1.0
EMBEDDED = tuple(name for name, variant in backbones.VARIANTS.items() if variant.embedded)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_REBUILD = (
    "The runs' folders are the truth. Let trainings end, close the studio, and: python -m sousa_engine db rebuild"
)
_INSTALL = "Run `make app`, or: python -m pip install -r requirements.txt"
_HOST, _PORT = "STREAMLIT_SERVER_ADDRESS", "STREAMLIT_SERVER_PORT"
_PINNED = re.compile(r"([\w.-]+)==([\w.+!-]+)")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. cure: what to do, empty where nothing is wrong."""

    name: str
    level: Level
    text: str
    cure: str = ""


def worst(findings: Iterable[Finding]) -> Level:
    """The highest level among them; "ok" if there are none."""
    levels = {finding.level for finding in findings}
    return "problem" if "problem" in levels else "warning" if "warning" in levels else "ok"


def summary(findings: Sequence[Finding]) -> str:
    """The report in a sentence: "1 problem, 2 warnings; the rest is as it should be (18)."."""
    count = {level: sum(f.level == level for f in findings) for level in ("problem", "warning", "ok")}
    bad = [f"{n} {word}" + ("s" if n != 1 else "") for word, n in count.items() if n and word != "ok"]
    if not bad:
        return "Everything looked at is as it should be."
    return f"{', '.join(bad)}; the rest is as it should be ({count['ok']})."


def examine(workspace: Workspace) -> tuple[Finding, ...]:
    """Look at everything, in the order of the report. Takes some seconds: PyTorch is imported, the network is asked."""
    facts, trouble = look_at_torch([sys.executable, "-m", "sousa_engine.maintenance.torch_facts"])
    host, port = studio_address(PROJECT_ROOT / ".streamlit" / "config.toml", os.environ)
    return (
        program(__version__, workspace.root),
        python(sys.version_info[:3], sys.executable),
        *packages((PROJECT_ROOT / "requirements.txt").read_text(encoding="utf-8"), installed_version),
        torch_build(facts, trouble, gpus=len(list(Path("/dev").glob("nvidia[0-9]*")))),
        *((torchaudio(facts), devices(facts, psutil.virtual_memory()), bf16(facts)) if facts else ()),
        threads(facts and facts.threads, cores(), os.environ),
        disk("Disk of the workspace", _nearest_folder(workspace.root), shutil.disk_usage),
        disk("Disk for temporary files", Path(tempfile.gettempdir()), shutil.disk_usage),
        writable(workspace.root, in_the_way(workspace) or write_trouble(_nearest_folder(workspace.root))),
        file_system(workspace.root, file_systems.kind_of(workspace.root)),
        database(workspace, migrations.look),
        supervisor(
            is_supervised(workspace),
            waiting_runs(workspace),
            workspace.supervisor_log,
            is_paused=is_paused(workspace),
        ),
        weights(
            {name: where_weights_are(name, workspace) for name in backbones.VARIANTS},
            {name: what_is_wrong(name, workspace) for name in backbones.VARIANTS},
        ),
        address(host, port, who_answers(host, port), has_token=bool(os.environ.get("SOUSA_TOKEN"))),
        network(downloads.unreachable(_some_download(), fresh=True)),
        text_encoding(sys.getfilesystemencoding(), locale.getpreferredencoding(False)),
    )


def as_text(findings: Sequence[Finding], paint: Callable[[str, Level], str] = lambda word, level: word) -> str:
    """A line a finding, its cure on a line below it. paint: colours the level's word."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        word = paint(f"{'PROBLEM' if finding.level == 'problem' else finding.level:<8}", finding.level)
        lines.append(f"{word} {finding.name:<{width}}  {finding.text}")
        if finding.cure:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.cure}")
    return "\n".join([*lines, "", summary(findings)])


# The checks


def program(version: str, root: Path) -> Finding:
    return Finding(name="SOUSA engine", level="ok", text=f"{version}, workspace {root}")


def python(version: Sequence[int], executable: str) -> Finding:
    text = f"{'.'.join(map(str, version))}, {executable}"
    if (3, 11) <= tuple(version[:2]) <= (3, 13):
        return Finding(name="Python", level="ok", text=text)
    cure = "Use Python 3.11, 3.12 or 3.13: make app PYTHON=python3.12"
    return Finding(name="Python", level="problem", text=text, cure=cure)


def packages(requirements: str, installed: Callable[[str], str | None]) -> tuple[Finding, ...]:
    """One line for all packages that are as pinned, and one for each that is not.

    What stands below the line "# Development" is needed for tests alone. A build's own mark (+cpu) does not count.
    """
    found, right = [], 0
    runtime, _, development = requirements.partition("# Development")
    levels: tuple[Level, Level] = ("problem", "warning")
    for part, level in zip((runtime, development), levels, strict=True):
        for name, pin in _PINNED.findall(part):
            here = installed(name)
            if here == pin or (here or "").partition("+")[0] == pin:
                right += 1
            elif here is None:
                why = "is not installed" + ("" if level == "problem" else "; it is for tests and checks alone")
                text = f"{name} {pin} {why}"
                found.append(Finding(name=f"Package {name}", level=level, text=text, cure=_INSTALL))
            else:
                text = f"{name} {here} is installed, {pin} is what this program was tested with"
                found.append(Finding(name=f"Package {name}", level="warning", text=text, cure=_INSTALL))
    text = f"{right} of {right + len(found)} are as pinned in requirements.txt"
    return (Finding(name="Packages", level="ok", text=text), *found)


def torch_build(facts: TorchFacts | None, trouble: str, *, gpus: int) -> Finding:
    """gpus: NVIDIA GPUs that the driver shows, whatever PyTorch makes of them."""
    name = "PyTorch"
    if facts is None:
        return Finding(name=name, level="problem", text=trouble, cure=f"No run can train without it. {_INSTALL}")
    build = f"built for CUDA {facts.cuda}" if facts.cuda else "with MPS" if facts.mps else "CPU build"
    text = f"{facts.version}, {build}"
    seen = f"; {gpus} NVIDIA {'GPU' if gpus == 1 else 'GPUs'} here"
    if gpus and facts.cuda is None:
        cure = "Install PyTorch for CUDA (https://pytorch.org/get-started), or go on with the CPU."
        return Finding(name=name, level="warning", text=text + seen, cure=cure)
    if gpus and not facts.devices:
        cure = (
            "The driver may be too old for this CUDA: compare with nvidia-smi. CUDA_VISIBLE_DEVICES may hide the GPU."
        )
        return Finding(name=name, level="warning", text=f"{text}{seen}, but PyTorch can use none", cure=cure)
    return Finding(name=name, level="ok", text=text)


def torchaudio(facts: TorchFacts) -> Finding:
    told = {
        "": "imports whole",
        "without extension": "imports; its compiled extension does not fit this PyTorch, and nothing needs it",
    }
    if facts.torchaudio in told:
        return Finding(name="torchaudio", level="ok", text=told[facts.torchaudio])
    text = f"cannot be imported: {facts.torchaudio}"
    return Finding(name="torchaudio", level="problem", text=text, cure=f"AST backbones need it. {_INSTALL}")


def devices(facts: TorchFacts, memory: object) -> Finding:
    """memory: as psutil.virtual_memory() answers."""
    whole, free = (getattr(memory, name) >> 20 for name in ("total", "available"))
    cpu = f"cpu: {whole:,} MiB of memory, {free:,} MiB free"
    text = "; ".join([*map(_device_text, facts.devices), cpu])
    if free < 1024:
        cure = "A training needs 1 GiB or more: close other programs, or stop other runs."
        return Finding(name="Devices", level="warning", text=text, cure=cure)
    return Finding(name="Devices", level="ok", text=text)


def _device_text(device: Device) -> str:
    free = "" if device.free_mib is None else f", {device.free_mib:,} MiB free"
    return f"{device.name}: {device.title}, {device.memory_mib:,} MiB{free}"


def bf16(facts: TorchFacts) -> Finding:
    """Never wrong: float32 runs everywhere. It says where training.precision=bf16 pays."""
    told = {True: "in hardware", False: "not in hardware: float32 is the better choice", None: "not known"}
    known = [*((device.name, device.bf16) for device in facts.devices), ("cpu", facts.cpu_bf16)]
    return Finding(name="bf16", level="ok", text="; ".join(f"{name}: {told[has]}" for name, has in known))


def threads(used: int | None, cores: int, environment: Mapping[str, str]) -> Finding:
    text = f"cores that may be used: {cores}" + (f", threads of PyTorch: {used}" if used else "")
    if used and used > cores:
        cure = f"More threads than cores slow each other down: set OMP_NUM_THREADS={cores}."
        return Finding(name="CPU", level="warning", text=text, cure=cure)
    if used and used < cores / 2 and "OMP_NUM_THREADS" in environment:
        cure = f"OMP_NUM_THREADS={environment['OMP_NUM_THREADS']} holds it back: unset it for runs on the CPU."
        return Finding(name="CPU", level="warning", text=text, cure=cure)
    return Finding(name="CPU", level="ok", text=text)


def disk(name: str, folder: Path, usage: Callable[[Path], object]) -> Finding:
    try:
        free: int = getattr(usage(folder), "free")  # noqa: B009
    except OSError as error:
        text = f"{folder}: {error.strerror}"
        return Finding(
            name=name, level="problem", text=text, cure="Choose a folder that exists: SOUSA_WORKSPACE, TMPDIR."
        )
    text = f"{free / 2**30:,.1f} GiB free at {folder}"
    if free >= LITTLE_FREE_BYTES:
        return Finding(name=name, level="ok", text=text)
    cure = "Free some space: delete runs that nobody needs (python -m sousa_engine delete), or move the workspace."
    level: Level = "problem" if free < LEAST_FREE_BYTES else "warning"
    return Finding(name=name, level=level, text=text, cure=cure)


def writable(root: Path, trouble: str) -> Finding:
    """trouble: why nothing can be written there, "" if it can."""
    if not trouble:
        new = "" if root.is_dir() else " (not there yet; it is made with the first run)"
        return Finding(name="Workspace", level="ok", text=f"{root} can be written to{new}")
    cure = "Give yourself the right to write there, or set SOUSA_WORKSPACE to another folder."
    return Finding(name="Workspace", level="problem", text=f"{root} cannot be written to: {trouble}", cure=cure)


def file_system(root: Path, kind: str) -> Finding:
    """Locks and SQLite's write-ahead log do not hold on network file systems: they can lose what was stored."""
    if not kind:
        return Finding(name="File system", level="ok", text="of a kind that this system does not tell")
    if file_systems.is_network(kind):
        text = f"{root} is on {kind}, a network or shared file system: its locks cannot be relied on"
        return Finding(name="File system", level="problem", text=text, cure="Set SOUSA_WORKSPACE to a local disk.")
    if kind.lower() in ("tmpfs", "ramfs"):
        text = f"{root} is on {kind}: everything is gone when this machine stops"
        return Finding(name="File system", level="warning", text=text, cure="Set SOUSA_WORKSPACE to a disk.")
    return Finding(name="File system", level="ok", text=kind)


def database(workspace: Workspace, look: Callable[[Workspace], migrations.Look]) -> Finding:
    try:
        folders = check.run_folders(workspace)
        if not workspace.db.exists() and not folders:
            return Finding(name="Database", level="ok", text="none yet; it is made with the first run")
        if not workspace.db.exists():
            text = f"there is none, but {_folders(folders)}"
            return Finding(name="Database", level="problem", text=text, cure=_REBUILD)
        found = look(workspace)
    except OSError as error:
        text = f"{workspace.db} cannot be looked at: {error.strerror}"
        cure = "Give yourself the right to read it, or set SOUSA_WORKSPACE to another folder."
        return Finding(name="Database", level="problem", text=text, cure=cure)
    except WorkspaceError as error:  # a sentence, and its cure
        text, _, cure = str(error).partition(". ")
        cure = cure or "Close other programs that use it, or set SOUSA_WORKSPACE to another folder."
        return Finding(name="Database", level="problem", text=text.rstrip("."), cure=cure)
    if found.trouble:
        text = f"{workspace.db} is damaged: {found.trouble}"
        return Finding(name="Database", level="problem", text=text, cure=_REBUILD)
    unknown = [name for name in folders if name not in found.ids]
    if unknown:
        text = f"{found.runs:,} runs, and {_folders(unknown)} that it does not know"
        return Finding(name="Database", level="problem", text=text, cure=_REBUILD)
    newer = "" if found.version == found.latest else f", brought to {found.latest} when it is next opened"
    return Finding(name="Database", level="ok", text=f"schema {found.version}{newer}, whole, {found.runs:,} runs")


def _folders(names: Sequence[str]) -> str:
    return f"{len(names):,} run folder{'' if len(names) == 1 else 's'} ({names[0]}{', ...' if len(names) > 1 else ''})"


def supervisor(is_alive: bool, waiting: int | None, log: Path, *, is_paused: bool = False) -> Finding:
    """waiting: queued runs, None if they cannot be counted. is_paused: whether none of them is to start now."""
    runs = f"{waiting or 0} {'run waits' if waiting == 1 else 'runs wait'}"
    if is_alive:
        return Finding(name="Supervisor", level="ok", text=f"alive; {runs}")
    if waiting and is_paused:
        text = f"none lives, and none is needed: {runs} for the end of a pause (python -m sousa_engine queue)"
        return Finding(name="Supervisor", level="ok", text=text)
    if waiting:
        text = f"none lives, and {runs}"
        cure = f"Open the studio: it starts one. If it dies again, see {log}."
        return Finding(name="Supervisor", level="warning", text=text, cure=cure)
    return Finding(name="Supervisor", level="ok", text="none lives, nothing waits; the next run starts one")


def weights(places: Mapping[str, str], broken: Mapping[str, str] | None = None) -> Finding:
    """places: backbone -> "embedded", "hub cache", where a file came from, or "" where none is here.

    broken: backbone -> what is wrong with the file that is here, "" if nothing is seen.
    """
    wrong = {name: text for name, text in (broken or {}).items() if text}
    here = [f"{name} ({place})" for name, place in places.items() if place]
    missing = [name for name, place in places.items() if not place]
    text = (", ".join(here) or "none here") + (f"; not here: {', '.join(missing)}" if missing else "")
    if any(name in missing or name in wrong for name in EMBEDDED):
        text = " ".join([text, *wrong.values()]) if wrong else text
        again = "git checkout sousa_engine/backbones/weights"
        cure = f"The embedded weights are part of this program: get it again, or: {again}"
        return Finding(name="Weights", level="problem", text=text, cure=cure)
    if wrong:
        cure = f"Once more: python -m sousa_engine weights fetch {next(iter(wrong))}, or weights import FILE"
        return Finding(name="Weights", level="warning", text=f"{text}. {' '.join(wrong.values())}", cure=cure)
    return Finding(name="Weights", level="ok", text=text)


def address(host: str, port: int, answering: str, *, has_token: bool) -> Finding:
    """answering: "studio", "" for nobody, else what is there instead."""
    shown = "localhost" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    if host not in LOOPBACK and not host.startswith("127.") and not has_token:
        text = f"{url}, set to listen on {host or 'every interface'}, which the studio refuses without a token"
        cure = "Set server.address to 127.0.0.1, or SOUSA_TOKEN to a secret (SECURITY.md)."
        return Finding(name="Browser address", level="problem", text=text, cure=cure)
    if answering == "studio":
        return Finding(name="Browser address", level="ok", text=f"{url}, the studio answers")
    if answering:
        text = f"{url} is taken by another program ({answering})"
        cure = "The studio takes the next port and prints it. To choose one: --server.port 8600"
        return Finding(name="Browser address", level="warning", text=text, cure=cure)
    return Finding(name="Browser address", level="ok", text=f"{url}, nobody answers now; to start the studio: make app")


def network(unreachable: str) -> Finding:
    """Never wrong: the embedded backbones and data need no network."""
    if not unreachable:
        return Finding(name="Network", level="ok", text="published weights can be downloaded")
    text = (
        f"offline: {unreachable}. Embedded backbones and data need none; others: python -m sousa_engine weights import"
    )
    return Finding(name="Network", level="ok", text=text)


def text_encoding(files: str, preferred: str) -> Finding:
    """Encodings of file names, and of text files where none is named."""
    text = f"file names {files}, text {preferred}"
    if all(re.sub(r"[^a-z0-9]", "", name.lower()) in ("utf8", "utf8mb4") for name in (files, preferred)):
        return Finding(name="Text encoding", level="ok", text=text)
    cure = "Names outside ASCII may fail: set LANG to a UTF-8 locale such as C.UTF-8, or PYTHONUTF8=1."
    return Finding(name="Text encoding", level="warning", text=text, cure=cure)


# The facts of this machine


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def look_at_torch(command: Sequence[str], limit_s: float = TORCH_LIMIT_S) -> tuple[TorchFacts | None, str]:
    """(facts, "") or (None, what went wrong): PyTorch missing, broken, ended by a signal, or silent for too long."""
    code, output, errors = _run(command, limit_s, group=False)
    if code is None:
        return None, f"importing it took more than {limit_s:.0f} s"
    if code < 0:
        return (
            None,
            f"importing it ended the process by {signal.Signals(-code).name}: a build for another CPU or driver",
        )
    try:
        return torch_facts.from_json(output.strip().splitlines()[-1]), ""
    except (ValueError, KeyError, TypeError, IndexError):
        last = (errors.strip().splitlines() or [f"exit code {code}, and no reason"])[-1]
        return None, f"it cannot be imported: {last[:300]}"


def cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def write_trouble(folder: Path) -> str:
    """Why no file can be made in `folder`, "" if one can. The file is gone at once."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def in_the_way(workspace: Workspace) -> str:
    """Why the workspace can be no folder of ours: a file in its place, or no right to look; "" if it can."""
    for place in (workspace.root, workspace.runs):
        try:
            if place.exists() and not place.is_dir():
                return f"{place} is a file, where a folder has to be"
        except OSError as error:
            return f"{place}: {error.strerror}"
    return ""


def is_supervised(workspace: Workspace) -> bool:
    try:
        return locks.is_held(workspace.supervisor_lock)
    except OSError:  # nobody can supervise there
        return False


def is_paused(workspace: Workspace) -> bool:
    """Whether runs wait, and all of them in a queue or a sweep that is paused."""
    try:
        with Store.open(workspace, readonly=True) as store:
            return bool(store.queue.count()) and not store.queue.waiting_devices()
    except WorkspaceError:
        return False


def waiting_runs(workspace: Workspace) -> int | None:
    try:
        with Store.open(workspace, readonly=True) as store:
            return store.queue.count()
    except WorkspaceError:
        return None


def where_weights_are(name: str, workspace: Workspace) -> str:
    try:
        here = pretrained.stored(backbones.variant(name), workspace)
    except (OSError, ValueError):  # its card is none
        return ""
    return here.origin.partition(" from ")[0] if here else ""


def what_is_wrong(name: str, workspace: Workspace) -> str:
    """A sentence if the weights that are here are seen to be broken by their header and length; "" else."""
    if not where_weights_are(name, workspace):
        return ""
    return pretrained.weights_state(backbones.variant(name), workspace).message


def studio_address(config: Path, environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port as Streamlit reads them: environment before file. "" is every interface."""
    try:
        settings = tomllib.loads(config.read_text(encoding="utf-8")).get("server", {})
    except (OSError, tomllib.TOMLDecodeError):
        settings = {}
    host = environment.get(_HOST, settings.get("address", ""))
    port = environment.get(_PORT, settings.get("port", 8501))
    return str(host), int(port) if str(port).isdecimal() else 8501


def who_answers(host: str, port: int) -> str:
    """See `address`. A studio answers its health check with "ok", or asks for its token."""
    near = host if host not in ("", "0.0.0.0", "::") else "127.0.0.1"
    url = f"http://{f'[{near}]' if ':' in near else near}:{port}/_stcore/health"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=ADDRESS_PATIENCE_S) as answer:
            return "studio" if answer.read(16) == b"ok" else "a web server"
    except urllib.error.HTTPError as error:
        error.close()
        return "studio" if error.headers.get("WWW-Authenticate", "").startswith("SOUSA") else "a web server"
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        nobody = isinstance(reason, OSError) and reason.errno in (errno.ECONNREFUSED, errno.EADDRNOTAVAIL)
        return "" if nobody or isinstance(reason, TimeoutError) else "it speaks no HTTP"
    except ValueError:
        return ""
    except Exception as error:  # http.client: not HTTP at all
        return type(error).__name__


# For the page, which must not wait for ever


def ask(
    workspace: Workspace,
    command: Sequence[str] | None = None,
    limit_s: float = WHOLE_LIMIT_S,
    *,
    address: tuple[str, int] | None = None,
) -> list[Finding]:
    """The report of `python -m sousa_engine doctor --json`, from a process of its own. Raises RunError.

    address: host and port of the studio that asks, where they are not those of its settings.
    """
    command = command or [sys.executable, "-m", "sousa_engine", "--workspace", str(workspace.root), "doctor", "--json"]
    more = {} if address is None else {_HOST: address[0], _PORT: str(address[1])}
    code, output, errors = _run(command, limit_s, more)
    if code is None:
        raise RunError(
            f"The doctor did not answer in {limit_s:.0f} s. Ask it from a terminal: python -m sousa_engine doctor"
        )
    try:
        return from_json(output)
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["it gave no reason"])[-1]
        raise RunError(f"The doctor itself failed (exit code {code}): {last[:300]}") from None


def to_json(findings: Sequence[Finding]) -> str:
    values = {"level": worst(findings), "summary": summary(findings), "findings": [asdict(f) for f in findings]}
    return json.dumps(values, ensure_ascii=False, indent=1)


def from_json(text: str) -> list[Finding]:
    """Raises ValueError, KeyError or TypeError for what is no report."""
    return [Finding(**values) for values in json.loads(text)["findings"]]


def _run(
    command: Sequence[str], limit_s: float, more_environment: Mapping[str, str] | None = None, *, group: bool = True
) -> tuple[int | None, str, str]:
    """(exit code, stdout, stderr); None for the code if it had to be ended, with all of its group."""
    process = subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=group,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(more_environment or {})},
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()
        return None, "", ""
    return process.returncode, output, errors


def _nearest_folder(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))


def _some_download() -> str:
    return next(v.download.url for v in backbones.VARIANTS.values() if v.download and v.download.url)
