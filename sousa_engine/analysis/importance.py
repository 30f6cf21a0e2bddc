"""Which axis of a sweep matters: functional ANOVA over a random forest (from Optuna), on means over seeds.

PED-ANOVA, Optuna's default since version 5, looks at the values that the best trials share. In a grid of about ten
settings these are only two or three trials, which may share a value by chance; fANOVA uses all settings.
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
MOST_LEVELS = 8  # a number with more distinct values was sampled from a range


@dataclass(frozen=True, kw_only=True)
class Importance:
    """shares: (field, share of the variance between settings that it explains alone), highest first; or reason.

    between: standard deviation of the means of settings. noise: the part of it that seeds alone would cause, estimated
    from their variation within settings (None if no setting has two seeds). Both are accuracies in [0, 1].
    """

    shares: tuple[tuple[str, float], ...] = ()
    settings: int = 0
    left_out: int = 0
    between: float = 0.0
    noise: float | None = None
    reason: str = ""

    @property
    def rest(self) -> float:
        """The share that no axis explains alone: axes combined, and noise."""
        return max(0.0, 1.0 - sum(share for _, share in self.shares))

    @property
    def sentence(self) -> str:
        """How to read the shares, or why there are none."""
        if self.reason:
            return self.reason
        said = (
            f"Functional ANOVA of {self.settings} settings, averaged over seeds (a seed is not an axis). "
            f"The standard deviation between settings is {100 * self.between:.1f} points"
        )
        if self.noise is None:
            return said + "; with one seed each, the part due to seeds is unknown."
        if self.noise > self.between / 2:
            return said + f", of which seeds alone would cause {100 * self.noise:.1f}: interpret the bars with caution."
        return said + f"; seeds alone would cause {100 * self.noise:.1f}."


def importance(axes: Sequence[SettingAxis], reached: Sequence[Sequence[float]]) -> Importance:
    """reached: for each setting the accuracies of its finished seeds; left_out counts the settings without any."""
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
        return replace(base, reason="All settings achieved the same accuracy: no axis makes a difference.")
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
    import optuna  # takes half a second, so it is imported only when needed

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
    """A listed axis is categorical; a sampled range is continuous, in logarithms if it spans magnitudes."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not axis.is_number or len(axis.levels) <= MOST_LEVELS:
        return CategoricalDistribution(axis.levels), axis.texts
    values = tuple(math.log10(value) if axis.is_log else float(value) for value in axis.values)
    return FloatDistribution(min(values), max(values)), values
