"""`doctor`: the state of this installation, as text or as JSON."""

from __future__ import annotations

import sys

import click

from sousa_engine.cli import terminal
from sousa_engine.maintenance import doctor
from sousa_engine.workspace import Workspace

_COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs and bug reports.")
@click.pass_obj
def doctor_command(workspace: Workspace, as_json: bool) -> None:
    """Check Python, packages, PyTorch, devices, disks and the workspace, and say how to fix each problem.

    Read-only: changes nothing. Exit code 1 if there is a problem, otherwise 0, even if there are warnings.
    """
    findings = doctor.examine(workspace)
    text = doctor.to_json(findings) if as_json else doctor.as_text(findings, _colored)
    click.echo(text, file=terminal.raw(sys.stdout))  # with our colours: `as_text` cleans all else
    sys.exit(1 if doctor.worst(findings) == "problem" else 0)


def _colored(word: str, level: doctor.Level) -> str:
    return click.style(word, fg=_COLORS[level])  # click removes the colour if the output is not a terminal
