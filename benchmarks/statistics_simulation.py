"""How often the report's intervals hold the truth, and how often its tests find what is not there.

    python benchmarks/statistics_simulation.py [--runs 2000] [--instances 500]

Instances get rates of their own (most are nearly always or nearly never solved, the mean is 5/9), two levels are drawn
from them, and the truth is known. Nominal: 95% for every interval, 5% for every test.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np

from harness.report import resampling
from harness.report.figures import Sample
from harness.report.resampling import sign_flip
from harness.report.sensitivity import bound_fixed
from harness.report.statistics import compare_paired, estimate_score, mcnemar

MEAN = 5 / 9
LOWEST, HIGHEST, FALSE_POSITIVES = 0.93, 0.97, 0.06


@dataclass(frozen=True)
class Setting:
    """One kind of study: `gain` is how much better the second level truly is."""

    instances: int
    repeats: int
    gain: float


def draw(rng: np.random.Generator, setting: Setting) -> tuple[Sample, Sample, np.ndarray, np.ndarray]:
    """Two levels on fresh instances, and their true rates."""
    rates = rng.beta(0.5, 0.4, setting.instances)
    gain = setting.gain
    changed = rates + gain * (1 - rates) / (1 - MEAN) if gain > 0 else rates * (1 + gain / MEAN)
    tries = np.full(setting.instances, float(setting.repeats))
    one, other = (Sample(rng.binomial(setting.repeats, p) / setting.repeats, tries) for p in (rates, changed))
    return one, other, rates, changed


def simulate(setting: Setting, runs: int, seed: int) -> dict[str, float]:
    """Share of `runs` in which each interval held the truth, and each test rejected a true null."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    for _ in range(runs):
        one, other, rates, changed = draw(rng, setting)
        paired = compare_paired(one, other, 0.02)
        score = estimate_score(one).interval
        counts["score"] += score.low <= MEAN <= score.high
        counts["difference, t"] += paired.t_interval.low <= setting.gain <= paired.t_interval.high
        counts["difference, BCa"] += paired.bootstrap.low <= setting.gain <= paired.bootstrap.high
        fixed = bound_fixed(one.means, one.repeats, other.means, other.repeats)
        if fixed is not None:
            counts["difference, these instances"] += fixed.low <= (changed - rates).mean() <= fixed.high
        count_rejections(counts, rng, setting)
    names = ["score", "difference, t", "difference, BCa", "false positives"]
    names += ["mid-p false positives"] if setting.repeats == 1 else ["difference, these instances"]
    return {name: counts[name] / runs for name in names}


def count_rejections(counts: Counter[str], rng: np.random.Generator, setting: Setting) -> None:
    """Add a study of two equal levels: by McNemar for one repeat, by sign flips for more."""
    one, other, _, _ = draw(rng, Setting(setting.instances, setting.repeats, 0.0))
    differences = other.means - one.means
    if setting.repeats > 1:
        counts["false positives"] += sign_flip(differences) < 0.05
        return
    table = mcnemar(int((differences < 0).sum()), int((differences > 0).sum()))
    counts["false positives"] += table.p < 0.05
    counts["mid-p false positives"] += table.mid_p < 0.05


def main() -> int:
    """Print a line per setting; 1 where a figure is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--instances", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=1_999)
    options = parser.parse_args()
    resampling.RESAMPLES = options.resamples
    failed = False
    for number, (repeats, gain) in enumerate([(1, 0.0), (1, -0.05), (3, -0.02), (5, 0.0), (5, -0.05)]):
        setting = Setting(options.instances, repeats, gain)
        found = simulate(setting, options.runs, 100 + number)
        good = all(
            share < FALSE_POSITIVES if "false" in name else LOWEST <= share <= HIGHEST for name, share in found.items()
        )
        failed = failed or not good
        figures = ", ".join(f"{name} {100 * share:.1f}" for name, share in found.items())
        print(f"n={setting.instances} K={repeats} true difference {100 * gain:+.0f}: {figures}", flush=True)
    print(
        "out of bounds"
        if failed
        else f"all within {LOWEST:.0%}..{HIGHEST:.0%}, false positives < {FALSE_POSITIVES:.0%}"
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
