"""Progress of slow work: a bar on a terminal; in a file or a pipe, a line for each tenth or for each epoch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping

import click
from tqdm import tqdm

from sousa_engine.core.records import Run
from sousa_engine.store import Store
from sousa_engine.workspace import intake

_ALL = 1_000_000  # points: each value of its own, as far as a run can have
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


def epoch_lines(store: Store, run: Run, skip: int = 0) -> list[str]:
    """A line for each validated epoch of the run after the first `skip`, such as

    epoch 3/10  train loss 1.204  valid loss 1.311  valid accuracy 54.3 %
    """
    accuracy, loss = (store.metrics.curve(run.id, f"valid/{name}", max_points=_ALL) for name in ("accuracy", "loss"))
    losses = dict(zip(loss.steps, loss.mean, strict=True))
    lines = []
    for epoch, (step, value) in enumerate(zip(accuracy.steps, accuracy.mean, strict=True), start=1):
        if epoch <= skip:
            continue
        first = accuracy.steps[epoch - 2] + 1 if epoch > 1 else 1
        trained = store.metrics.curve(run.id, "train/loss", first=first, last=step, max_points=_ALL).mean
        known = [one for one in trained if one is not None]
        parts = [f"epoch {epoch}/{run.config.training.max_epochs}"]
        parts += [f"train loss {sum(known) / len(known):.3f}"] if known else []
        parts += [] if (at := losses.get(step)) is None else [f"valid loss {at:.3f}"]
        parts += [] if value is None else [f"valid accuracy {value:.1%}".replace("%", " %")]
        lines.append("  ".join(parts))
    return lines
