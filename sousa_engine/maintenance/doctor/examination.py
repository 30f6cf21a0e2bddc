"""Gather the facts of this machine and judge them. Never imports PyTorch: a separate process does (torch_facts).

A check is a pure function of the facts that it judges and returns a Finding, so that a test can make each of them
fail. Only the functions that gather facts look at the machine, and none of them writes.
"""

from __future__ import annotations

import locale
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from sousa_engine import __version__, backbones
from sousa_engine.backbones import downloads
from sousa_engine.core.errors import RunError
from sousa_engine.maintenance.doctor import address, child, installation, storage, weights
from sousa_engine.maintenance.doctor.findings import Finding, from_json
from sousa_engine.store import migrations
from sousa_engine.workspace import PROJECT_ROOT, Workspace, file_systems

REPORT_LIMIT_S = 150.0


def examine(workspace: Workspace) -> tuple[Finding, ...]:
    """Run all checks, in the order of the report. Takes seconds: PyTorch is imported, the network is queried."""
    return (*_installation(workspace), *_storage(workspace), *_surroundings(workspace))


def _installation(workspace: Workspace) -> tuple[Finding, ...]:
    load = installation.load_of_last_minute()  # before we add to it
    facts, trouble = installation.look_at_torch([sys.executable, "-m", "sousa_engine.maintenance.torch_facts"])
    requirements = (PROJECT_ROOT / "requirements.txt").read_text(encoding="utf-8")
    of_torch = (
        (
            installation.torchaudio(facts),
            installation.devices(facts, psutil.virtual_memory()),
            installation.bf16(facts),
        )
        if facts
        else ()
    )
    return (
        installation.program(__version__, workspace.root),
        installation.python(sys.version_info[:3], sys.executable),
        installation.sqlite(sqlite3.sqlite_version_info),
        *installation.packages(requirements, installation.installed_version),
        installation.torch_build(facts, trouble, gpus=len(list(Path("/dev").glob("nvidia[0-9]*")))),
        *of_torch,
        installation.threads(facts and facts.threads, installation.cores(), os.environ),
        installation.load(load, installation.cores()),
    )


def _storage(workspace: Workspace) -> tuple[Finding, ...]:
    root, folder = workspace.root, storage.nearest_folder(workspace.root)
    return (
        storage.disk("Disk of the workspace", folder, shutil.disk_usage),
        storage.disk("Disk for temporary files", Path(tempfile.gettempdir()), shutil.disk_usage),
        storage.writable(root, storage.in_the_way(workspace) or storage.write_trouble(folder)),
        storage.file_system(root, file_systems.kind_of(root)),
        storage.database(workspace, migrations.look),
        storage.supervisor(
            storage.is_supervised(workspace),
            storage.waiting_runs(workspace),
            workspace.supervisor_log,
            is_paused=storage.is_paused(workspace),
            holder=storage.holder(workspace) if storage.is_supervised(workspace) else None,
        ),
    )


def _surroundings(workspace: Workspace) -> tuple[Finding, ...]:
    host, port = address.studio_address(PROJECT_ROOT / ".streamlit" / "config.toml", os.environ)
    has_token = bool(os.environ.get("SOUSA_TOKEN"))
    return (
        weights.weights(
            {name: weights.where_weights_are(name, workspace) for name in backbones.VARIANTS},
            {name: weights.what_is_wrong(name, workspace) for name in backbones.VARIANTS},
        ),
        address.address(host, port, address.who_answers(host, port), has_token=has_token),
        weights.network(downloads.unreachable(weights.some_download(), fresh=True)),
        installation.text_encoding(sys.getfilesystemencoding(), locale.getpreferredencoding(False)),
    )


def ask(
    workspace: Workspace,
    command: Sequence[str] | None = None,
    limit_s: float = REPORT_LIMIT_S,
    *,
    at: tuple[str, int] | None = None,
) -> list[Finding]:
    """The report of `python -m sousa_engine doctor --json`, made by a separate process. Raises RunError.

    at: host and port of the studio that asks, where they differ from its settings.
    """
    command = command or [sys.executable, "-m", "sousa_engine", "--workspace", str(workspace.root), "doctor", "--json"]
    more = {} if at is None else {address.HOST: at[0], address.PORT: str(at[1])}
    answer = child.run(command, limit_s, more)
    if answer.code is None:
        raise RunError(
            f"The doctor did not answer within {limit_s:.0f} s. Run it from a terminal: python -m sousa_engine doctor"
        )
    try:
        return from_json(answer.output)
    except (ValueError, KeyError, TypeError):
        why = answer.last_error("it printed no error message")
        raise RunError(f"The doctor itself failed (exit code {answer.code}): {why}") from None
