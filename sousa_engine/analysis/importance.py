"""Which axis of a sweep matters: functional ANOVA over a random forest (Optuna's), on settings averaged over seeds.

Optuna's own default since version 5, PED-ANOVA, asks which values the best trials share. On a grid of some ten
settings the best are two or three, and it names what they happen to share; fANOVA uses every setting.
Source: Hutter, Hoos, Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter Importance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pvariance, variance
from typing import TYPE_CHECKING

from sousa_engine.analysis.settings import SettingAxis

if TYPE_CHECKING:
    import optuna

FEWEST_SETTINGS = 8
MOST_LEVELS = 8  # a number with more different values than this was drawn from a range


@dataclass(frozen=True, kw_only=True)
class Importance:
    """shares: (field, share of the variance between settings that it explains by itself), highest first; or reason.

    between: standard deviation of the settings' means; noise: how much of that seeds alone would make, from their
    spread within settings (None where no setting has two). Both are accuracies in [0, 1].
    """

    shares: tuple[tuple[str, float], ...] = ()
    settings: int = 0
    left_out: int = 0
    between: float = 0.0
    noise: float | None = None
    reason: str = ""

    @property
    def rest(self) -> float:
        """What no axis explains alone: axes acting together, and noise."""
        return max(0.0, 1.0 - sum(share for _, share in self.shares))

    @property
    def sentence(self) -> str:
        """How to read the shares, or why there are none."""
        if self.reason:
            return self.reason
        said = (
            f"Functional ANOVA of {self.settings} settings, averaged over seeds; a seed is no axis. "
            f"The settings' means differ by {100 * self.between:.1f} points (standard deviation)"
        )
        if self.noise is None:
            return said + "; with one seed each nobody can tell how much of that is luck."
        if self.noise > self.between / 2:
            return said + f", of which seeds alone would make {100 * self.noise:.1f}: read the bars with doubt."
        return said + f"; seeds alone would make {100 * self.noise:.1f}."


def importance(axes: Sequence[SettingAxis], reached: Sequence[Sequence[float]]) -> Importance:
    """reached: for each setting the accuracies of its finished seeds; those without any are left out, and counted."""
    counted = [i for i, values in enumerate(reached) if values]
    left_out = len(reached) - len(counted)
    base = Importance(settings=len(counted), left_out=left_out)
    if len(counted) < FEWEST_SETTINGS:
        return replace(
            base, reason=f"Importance needs {FEWEST_SETTINGS} settings with a finished run; there are {len(counted)}."
        )
    axes = [replace(axis, values=tuple(axis.values[i] for i in counted)) for axis in axes]
    axes = [axis for axis in axes if len(axis.levels) > 1]
    if not axes:
        return replace(base, reason="No axis has two values among the settings with a finished run.")
    means = [fmean(reached[i]) for i in counted]
    if max(means) == min(means):
        return replace(base, reason="All settings reached the same accuracy: no axis makes a difference.")
    within = [(variance(values), len(values)) for i in counted if len(values := reached[i]) > 1]
    pooled = sum(v * (n - 1) for v, n in within) / sum(n - 1 for _, n in within) if within else None
    seeds = fmean(1 / len(reached[i]) for i in counted)
    return replace(
        base,
        shares=_fanova(axes, means),
        between=math.sqrt(pvariance(means)),
        noise=None if pooled is None else math.sqrt(pooled * seeds),
    )


def _fanova(axes: Sequence[SettingAxis], means: Sequence[float]) -> tuple[tuple[str, float], ...]:
    import optuna  # half a second: only where it is needed

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    columns = {axis.field: _column(axis) for axis in axes}
    for i, mean in enumerate(means):
        study.add_trial(
            optuna.trial.create_trial(
                params={field: values[i] for field, (_, values) in columns.items()},
                distributions={field: distribution for field, (distribution, _) in columns.items()},
                value=mean,
            )
        )
    found = optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study)
    return tuple((field, float(share)) for field, share in found.items())


def _column(axis: SettingAxis) -> tuple[optuna.distributions.BaseDistribution, tuple[str | float, ...]]:
    """Listed values count the same each; a range counts by its length, in logarithms where it spans magnitudes."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not axis.is_number or len(axis.levels) <= MOST_LEVELS:
        return CategoricalDistribution(axis.levels), axis.texts
    values = tuple(math.log10(value) if axis.is_log else float(value) for value in axis.values)
    return FloatDistribution(min(values), max(values)), values
