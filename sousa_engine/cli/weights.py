"""`python -m sousa_engine weights`: list, fetch, import and verify pretrained weights.

Importing this module never imports torch; fetch, import and verify do so when they check tensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sousa_engine import backbones
from sousa_engine.backbones import Variant, downloads, pretrained
from sousa_engine.backbones.shelf import COLUMNS, here_text, row, size_text
from sousa_engine.cli import complete
from sousa_engine.cli.progress import progress
from sousa_engine.cli.types import TypedPath
from sousa_engine.core.errors import UserError, WeightsError
from sousa_engine.workspace import Workspace, intake, run_files

_lock_fd = click.option("--lock-fd", type=int, hidden=True, help="Lock of the intake, if the parent process holds it.")


@click.group()
@click.pass_context
def weights(ctx: click.Context) -> None:
    """List, fetch, import and verify the pretrained weights of the backbones."""
    typed = ctx.parent.params["root"] if ctx.parent else None  # SOUSA_WORKSPACE may name a folder that is created later
    if typed and not ctx.obj.root.is_dir():
        raise UserError(f"The folder {ctx.obj.root} does not exist, so it holds no weights. Check --workspace.")


@weights.command("list")
@click.argument("names", nargs=-1, metavar="[BACKBONE]...", shell_complete=complete.backbones)
@click.option("-v", "--verbose", is_flag=True, help="Show the page, link, sha256 and more for each.")
@click.pass_obj
def list_(workspace: Workspace, names: tuple[str, ...], verbose: bool) -> None:
    """List installed weights, and the download size of the others. Makes no network request."""
    variants = [backbones.variant(name) for name in names] or list(backbones.VARIANTS.values())
    if names or verbose:
        click.echo("\n\n".join(_card(variant, workspace) for variant in variants))
        return
    rows = [tuple(map(str.upper, COLUMNS)), *(row(variant, workspace) for variant in variants)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, here, size, licence, source in rows:
        click.echo(
            f"{name:<{widths[0]}}  {here:<{widths[1]}}  {size:>{widths[2]}}  {licence:<{widths[3]}}  {source}".rstrip()
        )


@weights.command()
@click.argument("name", metavar="BACKBONE", shell_complete=complete.backbones)
@_lock_fd
@click.pass_obj
def fetch(workspace: Workspace, name: str, lock_fd: int | None) -> None:
    """Download the published weights of a backbone. An interrupted download (Ctrl-C too) is resumed next time."""
    variant = backbones.variant(name)
    folder = pretrained.intake_folder(variant, workspace)
    doing = intake.look(folder) if lock_fd is None else None
    if doing and doing.is_running:
        click.echo(f"Another process is working on {variant.name} ({doing.doing}); waiting for it.", err=True)
    try:
        with progress(variant.name, _step, {"downloading": "B"}) as tell:
            state = pretrained.fetch(variant, backbones.family(variant), workspace, tell=tell, lock_fd=lock_fd)
    except KeyboardInterrupt:
        kept = downloads.kept(variant.download, folder) if variant.download else 0
        how = (
            f"{size_text(kept)} are kept; run the same command again to continue."
            if kept
            else "Nothing was downloaded."
        )
        click.echo(f"Stopped. {how}", err=True)
        sys.exit(run_files.EXIT_STOPPED)
    _echo_here(variant, workspace, state)


@weights.command("import")
@click.argument("file", type=TypedPath())
@click.option("--as", "name", metavar="BACKBONE", help="The backbone of these weights, if the file fits several.")
@_lock_fd
@click.pass_obj
def import_(workspace: Workspace, file: Path, name: str | None, lock_fd: int | None) -> None:
    """Copy a weights file into the workspace after checking that its tensors fit a backbone."""
    everyone = tuple(backbones.VARIANTS.values())
    if name is not None:
        variant = backbones.variant(name)
    else:
        fits = pretrained.recognise(file, [(one, backbones.family(one)) for one in everyone])
        if len(fits) > 1:
            named = " or ".join(f"--as {one.name}" for one in fits)
            raise WeightsError(f"The tensors of {file} fit {len(fits)} backbones. Choose one: {named}.")
        variant = fits[0]
    state = pretrained.import_weights(
        variant, backbones.family(variant), file, workspace, known=everyone, lock_fd=lock_fd
    )
    _echo_here(variant, workspace, state)


@weights.command()
@click.argument("names", nargs=-1, metavar="[BACKBONE]...", shell_complete=complete.backbones)
@click.pass_obj
def verify(workspace: Workspace, names: tuple[str, ...]) -> None:
    """Check the sha256 and tensors of all installed weights. Exit code 1 if any have changed."""
    chosen = [backbones.variant(name) for name in names]
    found = [(one, pretrained.stored(one, workspace)) for one in chosen or backbones.VARIANTS.values()]
    if missing := [one.name for one, here in found if here is None and chosen]:
        raise UserError(f"No weights of {', '.join(missing)} to verify. See: python -m sousa_engine weights list")
    wrong = 0
    for variant, here in found:
        if here is None:
            continue
        trouble = pretrained.verify(variant, backbones.family(variant), here)
        wrong += bool(trouble)
        said = trouble or f"{here.origin}, sha256 {downloads.sha256(here.path)[:12]}"
        click.echo(f"{'WRONG' if trouble else 'ok':<6} {variant.name:<16} {said}")
    if wrong:
        click.echo(f"{wrong} of {sum(here is not None for _, here in found)} are wrong. Fetch or import them again.")
        sys.exit(1)


def _card(variant: Variant, workspace: Workspace) -> str:
    here, published = pretrained.stored(variant, workspace), variant.download
    rows = [("backbone", f"{variant.name}: {variant.title}"), ("licence", variant.licence), ("source", variant.source)]
    rows.append(("needs", variant.needs))
    rows.append(("here", here.origin if here else here_text(variant, workspace)))
    if here:
        rows += [("  file", str(here.path)), ("  size", size_text(here.size_bytes))]
        rows += [("  sha256", here.recorded or "not recorded")]
    if published:
        rows += [("published", published.file), ("  size", size_text(published.size_bytes))]
        rows += [("  sha256", published.sha256 or "not published"), ("  page", published.page)]
        rows += [("  link", published.url or "none: download it by hand from the page, then import it")]
        rows += [("  note", published.note)] if published.note else []
    return "\n".join(f"{label:<10} {text}" for label, text in rows)


def _echo_here(variant: Variant, workspace: Workspace, state: backbones.WeightsState) -> None:
    here = pretrained.stored(variant, workspace)
    assert here is not None and state.path is not None
    click.echo(f"{variant.name}: {here.origin}, sha256 {here.recorded or 'unknown'}")
    click.echo(str(state.path))


def _step(stage: str, done: int, total: int | None) -> str:
    return f"{stage} {size_text(done)} of {size_text(total)}" if stage == "downloading" else f"{stage} its tensors"
