"""Progress of slow work on stderr: a bar on a terminal, a line for each tenth in a file or a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping

import click
from tqdm import tqdm

from sousa_engine.workspace import intake

STEP = 50_000_000  # between two lines, where the total is unknown: bytes of a download


@contextlib.contextmanager
def progress(name: str, line: Callable[[str, int, int | None], str], units: Mapping[str, str]) -> Iterator[intake.Tell]:
    """Yield tell(stage, done, total), which moves the bar or prints `name: line(stage, done, total)`.

    units: stage -> what the bar counts, such as "clips"; "B" is scaled to kB and MB. A stage without a unit shows its
    name alone.
    """
    with tqdm(desc=name, leave=False, disable=not sys.stderr.isatty()) as bar:
        last = ""

        def tell(stage: str, done: int, total: int | None) -> None:
            nonlocal last
            if bar.disable:
                step = f"{stage} {10 * done // total if total else done // STEP}"
                if step != last:
                    click.echo(f"{name}: {line(stage, done, total)}", err=True)
                last = step
                return
            if stage != last:
                unit = units.get(stage, "")
                bar.reset(total)
                bar.initial = done  # work done earlier must not count towards the speed
                bar.unit, bar.unit_scale = (unit, True) if unit == "B" else (f" {unit}", False)
                bar.bar_format = None if unit else "{desc}"
                bar.set_description_str(f"{name}: {stage}")
            last, bar.n = stage, done
            bar.update(0)

        yield tell
