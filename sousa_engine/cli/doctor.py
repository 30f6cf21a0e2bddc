"""`doctor`: what is right and wrong with this installation, as lines or as JSON."""

from __future__ import annotations

import sys

import click

from sousa_engine.maintenance import doctor
from sousa_engine.workspace import Workspace

_COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs and bug reports.")
@click.pass_obj
def doctor_command(workspace: Workspace, as_json: bool) -> None:
    """Look at Python, packages, PyTorch, devices, disks and the workspace; name the fix of each problem.

    Exit code 0 if there is no problem (warnings may be), 1 if there is one. Nothing is changed.
    """
    findings = doctor.examine(workspace)
    click.echo(doctor.to_json(findings) if as_json else doctor.as_text(findings, _colored))
    sys.exit(1 if doctor.worst(findings) == "problem" else 0)


def _colored(word: str, level: doctor.Level) -> str:
    return click.style(word, fg=_COLORS[level])  # click takes it out again where the output is no terminal
