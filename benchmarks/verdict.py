"""Can a verdict be trusted? How often does each rule name a false winner among four equally good, simulated settings?

    python -m benchmarks.verdict [--repeats 200] [--draws 5000]

Writes benchmarks/results/verdict.json and prints its tables as Markdown. Every rule gets the same simulated runs.
A network is right on a clip if this sum is above zero: its accuracy, the difficulty of the clip (shared by all), how
well the clip suits its setting (shared by its seeds) and a random term; a probit model with crossed effects.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import special
from statsmodels.stats.multitest import multipletests
from tqdm import tqdm

from sousa_engine.analysis.verdict import LEVEL, MARGIN, Group, Outcome, Verdict, verdict

RESULTS = Path(__file__).with_name("results") / "verdict.json"
Claims = set[tuple[int, int]]  # (winner, loser), by position


@dataclass(frozen=True, kw_only=True)
class World:
    """The distribution of runs. sd: between seeds; leads: over the other settings; both in points, one per setting."""

    seeds: int
    clips: int
    sd: tuple[float, ...]
    leads: tuple[float, ...] = (0, 0, 0, 0)
    accuracy: float = 0.7
    difficulty: float = 1.0  # variation between clips, in probit units
    taste: float = 0.3  # interaction of settings and clips
    own: float = 1.0  # random term of one network on one clip; if small, the seeds of a setting agree
    collapse: float = 0.0  # share of seeds that end 20 points lower


# Accuracy, difficulty, taste, own: from identical clips to clips on which all networks agree.
KINDS = ((0.5, 0, 0, 1), (0.6, 1, 0.3, 1), (0.7, 1, 0.3, 0.5), (0.8, 2, 0.5, 1), (0.9, 2, 0.5, 0.5))
SPREADS = ((0.0,) * 4, (1.0,) * 4, (3.0,) * 4, (0.0, 0.0, 3.0, 3.0))


def simulate(world: World, random: np.random.Generator) -> np.ndarray:
    """(settings, seeds, clips) of bool."""
    shape = (len(world.leads), world.seeds, world.clips)
    luck = np.array(world.sd)[:, None] * random.standard_normal(shape[:2])
    luck = luck - 20 * (random.random(shape[:2]) < world.collapse)
    reach = np.clip(world.accuracy + (np.array(world.leads)[:, None] + luck) / 100, 0.01, 0.99)
    spread = np.sqrt(world.difficulty**2 + world.taste**2 + world.own**2)
    clips = world.difficulty * random.standard_normal((1, 1, world.clips))
    clips = clips + world.taste * random.standard_normal((shape[0], 1, world.clips))
    return special.ndtri(reach)[:, :, None] * spread + clips + world.own * random.standard_normal(shape) > 0


def judged(right: np.ndarray, draws: int) -> Verdict:
    """The verdict of the engine on simulated runs; the settings are named 0, 1, 2, ..."""
    return verdict(
        [
            Group(name=str(i), right={seed: dict(enumerate(row)) for seed, row in enumerate(setting.tolist())})  # pyright: ignore[reportArgumentType]
            for i, setting in enumerate(right)
        ],
        draws=draws,
    )


# Rules


def highest_mean(right: np.ndarray, said: Verdict) -> Claims:
    """The setting with the highest mean wins."""
    means = right.mean((1, 2))
    top = int(means.argmax())
    return {(top, i) for i in range(len(means)) if means[i] < means[top]}


def mcnemar_one_seed(right: np.ndarray, said: Verdict) -> Claims:
    """McNemar's exact test on the networks of the first seeds, with Holm."""

    def p(i: int, j: int) -> float:
        a, b = right[i, 0], right[j, 0]
        one, other = int((a & ~b).sum()), int((b & ~a).sum())
        return min(1.0, 2 * float(special.bdtr(min(one, other), one + other, 0.5)))

    return _claims(right[:, :1].mean((1, 2)), p)


def clips_paired(right: np.ndarray, said: Verdict) -> Claims:
    """Paired t-test on the mean over seeds of each clip, with Holm: treats the seeds as the whole population."""
    by_clip = right.mean(1)

    def p(i: int, j: int) -> float:
        difference = by_clip[i] - by_clip[j]
        error = max(difference.std(ddof=1) / np.sqrt(len(difference)), 1e-9)
        return 2 * float(special.stdtr(len(difference) - 1, -abs(difference.mean()) / error))

    return _claims(by_clip.mean(1), p)


def plain_two_level(right: np.ndarray, said: Verdict) -> Claims:
    """A plain two-level bootstrap, by its variance (seeds and clips resampled, no correction), with Holm."""
    by_clip, by_seed = right.mean(1), right.mean(2)

    def p(i: int, j: int) -> float:
        difference = by_clip[i] - by_clip[j]
        variance = difference.var() / len(difference) + (by_seed[i].var() + by_seed[j].var()) / right.shape[1]
        return 2 * float(special.ndtr(-abs(difference.mean()) / np.sqrt(max(variance, 1e-12))))

    return _claims(by_clip.mean(1), p)


def welch_over_seeds(right: np.ndarray, said: Verdict) -> Claims:
    """Welch's t-test on the accuracies of the seeds, with Holm: treats the test clips as the whole population."""
    by_seed = right.mean(2)
    return _claims(by_seed.mean(1), lambda i, j: _welch(by_seed[i], by_seed[j]))


def welch_and_clips(right: np.ndarray, said: Verdict) -> Claims:
    """A difference that holds in Welch's t-test over seeds and in the paired t-test over clips, each with Holm."""
    return welch_over_seeds(right, said) & clips_paired(right, said)


def _welch(a: np.ndarray, b: np.ndarray) -> float:
    errors = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    if not errors.any():
        return float(a.mean() == b.mean())
    freedom = errors.sum() ** 2 / ((errors**2) / (len(a) - 1)).sum()
    return 2 * float(special.stdtr(freedom, -abs(a.mean() - b.mean()) / np.sqrt(errors.sum())))


def two_seeds_allowed(right: np.ndarray, said: Verdict) -> Claims:
    """The p of the engine, with Holm, without its rule that a claim needs three seeds."""
    by_pair = {frozenset((int(pair.first), int(pair.second))): pair.p for pair in said.pairs}
    return _claims(right.mean((1, 2)), lambda i, j: by_pair[frozenset((i, j))] or 1.0)


def engine(right: np.ndarray, said: Verdict) -> Claims:
    return {(int(pair.first), int(pair.second)) for pair in said.pairs if pair.outcome is Outcome.BEATS}


RULES: dict[str, Callable[[np.ndarray, Verdict], Claims]] = {
    "highest_mean": highest_mean,
    "mcnemar_one_seed": mcnemar_one_seed,
    "clips_paired": clips_paired,
    "plain_two_level": plain_two_level,
    "welch_over_seeds": welch_over_seeds,
    "welch_and_clips": welch_and_clips,
    "two_seeds_allowed": two_seeds_allowed,
    "engine": engine,
}
TITLES = {
    "highest_mean": "the highest mean",
    "mcnemar_one_seed": "McNemar's test on one seed",
    "clips_paired": "paired t-test over clips, seeds averaged",
    "plain_two_level": "plain two-level bootstrap (seeds and clips)",
    "welch_over_seeds": "Welch's t-test over seeds",
    "welch_and_clips": "both t-tests, over seeds and over clips",
    "engine": "the engine's verdict",
}


def _claims(means: np.ndarray, p: Callable[[int, int], float]) -> Claims:
    """Pairs with p below LEVEL after Holm, and a difference of the margin or more."""
    pairs = list(itertools.combinations(range(len(means)), 2))
    clear = multipletests([p(i, j) for i, j in pairs], alpha=LEVEL, method="holm")[0]
    ordered = [(i, j) if means[i] > means[j] else (j, i) for i, j in pairs]
    return {(i, j) for (i, j), yes in zip(ordered, clear, strict=True) if yes and means[i] - means[j] >= MARGIN}


# Tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200, help="simulated comparisons per row")
    parser.add_argument("--draws", type=int, default=5000, help="bootstrap resamples per pair")
    options = parser.parse_args()
    gc.freeze()  # multipletests collects garbage at each call, which takes 60 ms if that covers all of scipy
    began = time.process_time()
    equal = [World(seeds=seeds, clips=clips, sd=sd) for seeds in (2, 3, 5) for clips in (200, 480) for sd in SPREADS]
    better = [
        World(seeds=seeds, clips=480, sd=(sd,) * settings, leads=(lead, *([0] * (settings - 1))))
        for settings in (2, 4)
        for seeds in (2, 3, 5)
        for sd in (1.0, 2.0)
        for lead in (3, 6, 10)
    ]
    fragile = [
        World(seeds=seeds, clips=480, sd=(1.0,) * settings, leads=(0,) * settings, collapse=share)
        for settings in (2, 4)
        for seeds in (2, 3, 5)
        for share in (0.1, 1 / 3)
    ]
    tables = {
        "false_winners": [rates(world, options.repeats, options.draws, mixed=True) for world in tqdm(equal)],
        "power": [rates(world, options.repeats // 2, options.draws) for world in tqdm(better)],
        "collapse": [rates(world, options.repeats, options.draws) for world in tqdm(fragile)],
    }
    by_seeds = {seeds: [row for row in tables["false_winners"] if row["seeds"] == seeds] for seeds in (2, 3, 5)}
    worst = {
        seeds: {rule: max(row["false"][rule] for row in rows) for rule in RULES} for seeds, rows in by_seeds.items()
    }
    record = {"repeats": options.repeats, "draws": options.draws, "worst_false_winner_rate": worst, **tables}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{time.process_time() - began:.0f} s of CPU")
    for name, rows in tables.items():
        show(name, rows)


def summary() -> str:
    """The table of RESULTS.md, from the results on disk: the worst rate of false winners of each rule, by seeds."""
    worst = json.loads(RESULTS.read_text())["worst_false_winner_rate"]
    lines = [f"| rule | {' | '.join(f'{seeds} seeds' for seeds in worst)} |", "|---|" + "---:|" * len(worst)]
    for rule, title in TITLES.items():
        lines.append(f"| {title} | {' | '.join(f'{100 * worst[seeds][rule]:.1f} %' for seeds in worst)} |")
    return "\n".join(lines)


def rates(world: World, repeats: int, draws: int, *, mixed: bool = False) -> dict:
    """Share of comparisons in which a rule names a false winner, and of true leads that it finds (None without any).

    mixed: the repeats cycle through KINDS instead of using the kind of the world.
    """
    random = np.random.default_rng([world.seeds, world.clips, *(int(10 * x) for x in (*world.sd, *world.leads))])
    false, found = dict.fromkeys(RULES, 0), dict.fromkeys(RULES, 0)
    leads = world.leads
    true = {(i, j) for i, j in itertools.permutations(range(len(leads)), 2) if leads[i] > leads[j]}
    for i in range(repeats):
        accuracy, difficulty, taste, own = KINDS[i % len(KINDS)]
        kind = replace(world, accuracy=accuracy, difficulty=difficulty, taste=taste, own=own) if mixed else world
        right = simulate(kind, random)
        said = judged(right, draws)
        for rule, claims_of in RULES.items():
            claims = claims_of(right, said)
            false[rule] += bool(claims - true)
            found[rule] += len(claims & true)
    row = {key: value for key, value in asdict(world).items() if key in ("seeds", "clips", "sd", "leads", "collapse")}
    row["false"] = {rule: count / repeats for rule, count in false.items()}
    row["found"] = {rule: count / repeats / len(true) for rule, count in found.items()} if true else None
    return row


def show(name: str, rows: Sequence[dict]) -> None:
    which = "found" if rows[0]["found"] else "false"
    print(f"\n**{name}** ({which}, %)\n")
    print(f"| seeds | clips | sd of seeds | leads | collapse | {' | '.join(RULES)} |")
    print("|" + "---|" * (5 + len(RULES)))
    for row in rows:
        cells = [row["seeds"], row["clips"], *(" ".join(f"{x:g}" for x in row[key]) for key in ("sd", "leads"))]
        cells += [f"{row['collapse']:.2g}", *(f"{100 * row[which][rule]:.1f}" for rule in RULES)]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
