"""Levels compared pairwise with a baseline over the same instances."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.errors import UserError
from harness.report.arms import Arm, find_arms, leave_out
from harness.report.figures import Interval
from harness.report.guard import check_comparable
from harness.report.sensitivity import Details, find_details
from harness.report.statistics import Paired, Verdict, compare_paired, decide, holm
from harness.report.tables import describe_arm, tampering_notes
from harness.run.store import write_json

FORMAT = 1
FEW = 50
HEADERS = ("level", "n", "difference [95% CI]", "bootstrap", "lost/won", "p", "p (Holm)", "TOST", "detects", "verdict")


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline on the instances that both answered.

    `lost` and `won` are instances whose solved share fell or rose; `p_adjusted` is Holm's over all comparisons made.
    """

    baseline: Arm
    other: Arm
    paired: Paired
    p_adjusted: float
    verdict: Verdict
    lost: list[str]
    won: list[str]
    details: Details


def compare(
    targets: list[str],
    *,
    baseline: str | None = None,
    margin: float = 2.0,
    allow: Sequence[str] = (),
    output: Path | None = None,
    quarantine: Mapping[str, str] | None = None,
    echo: bool = True,
) -> int:
    """Compare the levels that `targets` name (run directories, run ids, RUN:LEVEL), write compare.json, print a table.

    `margin` is the equivalence margin in percentage points. `output` defaults to the baseline's run directory.
    Instances that `quarantine` names (with reasons) are left out at every level, and named. Returns the exit status 0.
    Raises `UserError` for targets that do not exist, are fewer than two levels, or differ in what `check_comparable`
    guards.
    """
    if not 0 < margin < 100:
        raise UserError(f"--margin {margin:g}: expected percentage points between 0 and 100")
    arms = find_arms(targets)
    if len(arms) < 2:
        raise UserError(f"{' '.join(targets)}: one level ({arms[0].label}); a comparison needs at least two")
    known = {name for arm in arms for name in arm.tasks["instance_id"]}
    left_out = {name: why for name, why in sorted((quarantine or {}).items()) if name in known}
    if len(left_out) == len(known):
        raise UserError(
            f"--quarantine: leaves out all {len(known)} instances of these runs; nothing is left to compare"
        )
    arms = leave_out(arms, left_out)
    base = find_baseline(arms, baseline)
    accepted = check_comparable([base, *(arm for arm in arms if arm is not base)], allow)
    comparisons = compare_arms(arms, base, margin / 100)
    path = output or base.run.paths.comparison
    write_json(path, to_json(comparisons, accepted) | {"quarantined": left_out})
    if echo:
        print_comparisons(comparisons, accepted)
        for name, why in left_out.items():
            Console(soft_wrap=True).print(f"Left out at every level: {name} ({why}).", highlight=False, markup=False)
        Console(soft_wrap=True).print(f"written: {path}", highlight=False, markup=False)
    return 0


def find_baseline(arms: Sequence[Arm], name: str | None = None) -> Arm:
    """The arm that `name` names by level or RUN:LEVEL; without a name the first run's own baseline, else the first arm.

    Raises `UserError` for a name that no arm, or more than one, has.
    """
    if name is None:
        first = arms[0].run
        return next((arm for arm in arms if arm.run is first and arm.level == first.baseline), arms[0])
    found = [arm for arm in arms if name in (arm.label, arm.level, f"{arm.run.run_id}:{arm.level}")]
    labels = ", ".join(arm.label for arm in arms)
    if not found:
        raise UserError(f"--baseline {name}: not among the compared levels ({labels})")
    if len(found) > 1:
        raise UserError(f"--baseline {name}: names {len(found)} of the compared levels; expected one of {labels}")
    return found[0]


def compare_arms(arms: Sequence[Arm], baseline: Arm, margin: float) -> list[Comparison]:
    """Every other arm against `baseline`; `margin` is a fraction. `UserError` where two have no instance in common."""
    others = [arm for arm in arms if arm is not baseline]
    pairs = [_pair(baseline, other, margin) for other in others]
    adjusted = holm([paired.p for paired, _, _, _ in pairs])
    return [
        Comparison(baseline, other, paired, p, decide(paired, p), lost, won, find_details(baseline, other, common))
        for other, (paired, lost, won, common), p in zip(others, pairs, adjusted, strict=True)
    ]


def print_comparisons(comparisons: Sequence[Comparison], accepted: dict[str, str]) -> None:
    """Print the table and the notes below it."""
    console = Console(width=None if Console().is_terminal else 140)
    table = Table(title=Text(f"baseline: {comparisons[0].baseline.label}"), title_justify="left")
    for index, name in enumerate(HEADERS):
        text = index in (0, len(HEADERS) - 1)
        table.add_column(name, justify="left" if text else "right", no_wrap=index != len(HEADERS) - 1)
    for comparison in comparisons:
        table.add_row(*map(Text, format_comparison(comparison)))
    console.print(table)
    for note in comparison_notes(comparisons, accepted):
        console.print(note, highlight=False, markup=False)


def format_comparison(comparison: Comparison) -> tuple[str, ...]:
    """The cells of one line, in the order of `HEADERS`; differences in percentage points."""
    paired = comparison.paired
    return (
        comparison.other.label,
        str(paired.n),
        f"{format_points(paired.difference)} {_format_interval(paired.t_interval)}",
        _format_interval(paired.bootstrap),
        f"{len(comparison.lost)}/{len(comparison.won)}",
        _format_p(paired.p),
        _format_p(comparison.p_adjusted),
        _format_p(paired.p_tost),
        f">={100 * paired.detectable:.1f}",
        comparison.verdict.text,
    )


def format_points(value: float) -> str:
    """A fraction as signed percentage points."""
    return f"{100 * value:+.1f}" if round(100 * value, 1) else "0.0"


def comparison_notes(comparisons: Sequence[Comparison], accepted: dict[str, str]) -> list[str]:
    """What a reader must know of the comparison."""
    paired = [comparison.paired for comparison in comparisons]
    tests = ", ".join(dict.fromkeys(one.test for one in paired))
    notes = [
        f"Differences in percentage points, on instances that both levels answered. Test: {tests}, Holm over "
        f"{len(paired)}. TOST: equivalence within ±{100 * paired[0].margin:g} points. Detects: the smallest true "
        "difference that this comparison finds with 80% power."
    ]
    if min(one.n for one in paired) < FEW:
        notes.append(f"Below {FEW} instances the bootstrap interval is too narrow; read the t interval beside it.")
    for comparison in comparisons:
        one = comparison.paired
        if 0 < abs(one.difference) < one.detectable:
            notes.append(
                f"{comparison.other.label}: the difference of {format_points(one.difference)} is below what this "
                f"comparison detects ({100 * one.detectable:.1f})."
            )
        if one.mcnemar is not None and one.mcnemar.lost + one.mcnemar.won:
            table = one.mcnemar
            notes.append(
                f"{comparison.other.label}: McNemar b={table.lost}, c={table.won}, p={_format_p(table.p)}, "
                f"mid-p={_format_p(table.mid_p)}."
            )
        notes += _state_details(comparison)
    notes += tampering_notes([comparisons[0].baseline, *(comparison.other for comparison in comparisons)])
    if any(comparison.baseline.run.is_simulated or comparison.other.run.is_simulated for comparison in comparisons):
        notes.insert(0, "Simulated data: drawn from a random generator, not measured.")
    return notes + [f"Allowed difference in {field}: {difference}." for field, difference in accepted.items()]


def _state_details(comparison: Comparison) -> list[str]:
    label, details, flips = comparison.other.label, comparison.details, comparison.details.flips
    text = f"{label}: {100 * flips.cross:.1f}% of instances flip between one run of each"
    if flips.excess == flips.excess:
        text += (
            f"; chance alone, from both levels' own repeats, explains {100 * (flips.cross - flips.excess):.1f}%, "
            f"which leaves {format_points(flips.excess)} points of excess flips"
        )
    costs = ", ".join(
        f"{name} {one.median:+,.1f} in the median (Wilcoxon p={_format_p(one.p)})"
        for name, one in (("steps", details.steps), ("tokens", details.tokens))
    )
    notes = [text + ".", f"{label}: {costs}."]
    if details.fixed is not None:
        notes.append(f"{label}: on just these instances, where only luck varies: {_format_interval(details.fixed)}.")
    return notes


def to_json(comparisons: Sequence[Comparison], accepted: dict[str, str]) -> dict[str, Any]:
    """The content of compare.json; shares and differences are fractions there."""
    baseline = comparisons[0].baseline
    arms = [baseline, *(comparison.other for comparison in comparisons)]
    return {
        "format": FORMAT,
        "baseline": baseline.label,
        "margin": comparisons[0].paired.margin,
        "allowed": accepted,
        "arms": [{"run_id": arm.run.run_id, **_without_nan(describe_arm(arm))} for arm in arms],
        "comparisons": [
            {
                "level": comparison.other.label,
                "verdict": comparison.verdict.text,
                "p_adjusted": comparison.p_adjusted,
                **asdict(comparison.paired),
                "mcnemar": comparison.paired.mcnemar and comparison.paired.mcnemar._asdict(),
                "lost": comparison.lost,
                "won": comparison.won,
                "details": _without_nan(asdict(comparison.details)),
            }
            for comparison in comparisons
        ],
    }


def _pair(baseline: Arm, other: Arm, margin: float) -> tuple[Paired, list[str], list[str], list[str]]:
    common = sorted(set(baseline.answers["instance_id"]) & set(other.answers["instance_id"]))
    if not common:
        raise UserError(f"{baseline.label} and {other.label}: no instance that both answered, so nothing to compare")
    base, changed = baseline.sample(common), other.sample(common)
    lost = [name for name, before, after in zip(common, base.means, changed.means, strict=True) if after < before]
    won = [name for name, before, after in zip(common, base.means, changed.means, strict=True) if after > before]
    return compare_paired(base, changed, margin), lost, won, common


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def _format_interval(interval: Interval) -> str:
    return f"[{format_points(interval.low)}, {format_points(interval.high)}]"


def _format_p(p: float) -> str:
    return "<.001" if p < 0.001 else f"{p:.3f}"
