"""The score table: what each level costs and what it solves."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.report.arms import Arm, Run, list_arms, load_run
from harness.report.statistics import estimate_score
from harness.run.outcome import Outcome

UNKNOWN = "-"
_MEBI, _GIBI = 2**20, 2**30
_MEASURED = ("perplexity", "kld_mean", "kld_p99", "top1")
_HEADERS = ("level", "weights", "resolved", "score [95% CI]", "excluded", "steps", "tokens", "tokens/s", "perplexity")


def score_rows(run: Run) -> pd.DataFrame:
    """One row per level: `level, label, quant, weights_bytes, instances, answers, resolved, score, low, high, method,
    infra_error, wall_clock, steps, tokens, tokens_per_second`, what was measured of the level (`perplexity`,
    `kld_mean`, `kld_p99` in nats, `top1`, `valid_calls`), seconds, tokens and joules per solved issue, the same on
    agents' transcripts (`transcripts_perplexity`, `transcripts_kld`), and the counts of `flagged` and `suspect` tasks.

    `score` is the mean over instances of their solved share, with its 95% interval; `steps` and `tokens` (prompt and
    completion) are means over the answers that count. Unknown figures are NaN.
    """
    return pd.DataFrame([describe_arm(arm) for arm in list_arms(run)])


def describe_arm(arm: Arm) -> dict[str, Any]:
    """One row of `score_rows`."""
    answers, outcomes, entry = arm.answers, arm.tasks["outcome"], arm.entry
    estimate = estimate_score(arm.sample())
    return {
        "level": arm.level,
        "label": arm.label,
        "quant": entry.get("quant") or "",
        "weights_bytes": _number(entry.get("weights_bytes")),
        "instances": answers["instance_id"].nunique(),
        "answers": len(answers),
        "resolved": int(answers["resolved"].sum()),
        "score": estimate.value,
        "low": estimate.interval.low,
        "high": estimate.interval.high,
        "method": estimate.method,
        "infra_error": int((outcomes == Outcome.INFRA_ERROR).sum()),
        "wall_clock": int((outcomes == Outcome.WALL_CLOCK).sum()),
        "steps": float(answers["steps"].mean()),
        "tokens": float((answers["prompt_tokens"] + answers["completion_tokens"]).mean()),
        "tokens_per_second": _number(entry.get("tokens_per_second")),
        **{key: _number(entry.get(key)) for key in _MEASURED},
        "valid_calls": _share(entry.get("tool_calls_valid"), entry.get("tool_calls")),
        "seconds": float(answers["seconds_agent"].mean()),
        "seconds_per_solved": _share(float(answers["seconds_agent"].sum()), int(answers["resolved"].sum())),
        "tokens_per_solved": _share(
            float((answers["prompt_tokens"] + answers["completion_tokens"]).sum()), int(answers["resolved"].sum())
        ),
        "joules_per_solved": _share(entry.get("joules"), int(answers["resolved"].sum())),
        "transcripts_perplexity": _number((entry.get("transcripts") or {}).get("perplexity")),
        "transcripts_kld": _number((entry.get("transcripts") or {}).get("kld_mean")),
        "flagged": int((arm.tasks["flags"] != "").sum()),
        "suspect": int(arm.tasks["suspect"].sum()),
    }


def print_scores(run_dir: Path, console: Console | None = None) -> None:
    """Print the score table of a run and what it leaves out."""
    run = load_run(run_dir)
    console = console or Console(width=None if Console().is_terminal else 120)
    table = _plain_table(score_cells(run))
    table.title, table.title_justify = Text(f"{run.run_id}: {run.record['dataset']['name']}"), "left"
    console.print(table)
    for note in score_notes(run):
        console.print(note, highlight=False, markup=False)
    parts = difficulty_cells(run)
    if parts:
        console.print(_plain_table(parts))


def _plain_table(cells: Sequence[tuple[str, ...]]) -> Table:
    header, *lines = cells
    table = Table()
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def markdown_scores(run: Run) -> str:
    """The score table, its notes and the parts of the data in Markdown."""
    parts = difficulty_cells(run)
    notes = "".join(f"\n{note}\n" for note in score_notes(run))
    return markdown_table(score_cells(run)) + notes + (f"\n{markdown_table(parts)}" if parts else "")


def markdown_table(cells: Sequence[tuple[str, ...]]) -> str:
    """Cells as a Markdown table, the first row its header."""
    rows = [cells[0], ("---", *["---:"] * (len(cells[0]) - 1)), *cells[1:]]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def difficulty_cells(run: Run) -> list[tuple[str, ...]]:
    """Header and one line per level: answers resolved of each part of the dataset, named by its difficulty.

    The parts that are solved most come first; nothing where the dataset has only one.
    """
    arms = list_arms(run)
    shares = run.rows[run.rows["difficulty"] != ""].groupby("difficulty")["resolved"].mean()
    parts = sorted(shares.index, key=lambda part: (-shares[part], part))
    if len(parts) < 2:
        return []
    header = ("level", *(f"resolved of {part}" for part in parts))
    return [header, *((arm.label, *(_count_resolved(arm, part) for part in parts)) for arm in arms)]


def _count_resolved(arm: Arm, part: str) -> str:
    answers = arm.answers[arm.answers["difficulty"] == part]
    solved = int(answers["resolved"].sum())
    return f"{solved}/{len(answers)} ({format_share(solved / len(answers))}%)" if len(answers) else UNKNOWN


def score_cells(run: Run) -> list[tuple[str, ...]]:
    """Header and one line per level, as they are printed."""
    scores = score_rows(run)
    return [_HEADERS, *(_format_row(row) for row in scores.to_dict("records"))]


QUALITY_HEADERS = (
    "level",
    "perplexity",
    "KLD mean",
    "KLD 99%",
    "top-1",
    "PPL agents",
    "KLD agents",
    "valid calls",
    "weights",
    "tokens/s",
    "s/solved",
    "tokens/solved",
    "J/solved",
)


def quality_cells(scores: pd.DataFrame) -> list[tuple[str, ...]]:
    """Header and one line per level: what was measured of the model itself, and what a solved issue takes.

    KLD in nats a token, top-1 and valid calls in percent, seconds of one agent, tokens with those of the prompt.
    """
    return [QUALITY_HEADERS, *(_format_quality(row) for row in scores.to_dict("records"))]


def _format_quality(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    return (
        row["level"],
        _format_number(row["perplexity"], ".3f"),
        _format_number(row["kld_mean"], ".4f"),
        _format_number(row["kld_p99"], ".3f"),
        _format_number(100 * row["top1"], ".2f"),
        _format_number(row["transcripts_perplexity"], ".3f"),
        _format_number(row["transcripts_kld"], ".4f"),
        _format_number(100 * row["valid_calls"], ".2f"),
        format_bytes(row["weights_bytes"]),
        _format_number(row["tokens_per_second"], ".1f"),
        _format_number(row["seconds_per_solved"], ",.0f"),
        _format_number(row["tokens_per_solved"], ",.0f"),
        _format_number(row["joules_per_solved"], ",.0f"),
    )


def score_notes(run: Run) -> list[str]:
    """What a reader must know of the table: what is excluded, what is missing, how the interval was found."""
    scores = score_rows(run)
    notes = ["Simulated data: drawn from a random generator, not measured."] if run.is_simulated else []
    methods = ", ".join(dict.fromkeys(scores["method"]))
    notes.append(f"Interval: 95%, {methods}. Steps and tokens (prompt + completion) are means per counted task.")
    infra, clock = int(scores["infra_error"].sum()), int(scores["wall_clock"].sum())
    if infra or clock:
        notes.append(
            f"Excluded from score and means, because the machine and not the model ended them: {infra} tasks with an "
            f"infrastructure error, {clock} stopped by the wall clock."
        )
    else:
        notes.append("Nothing is excluded.")
    notes += tampering_notes(list_arms(run))
    missing = [
        f"{level} {len(run.rows[run.rows['level'] == level])} of {run.tasks_per_level}"
        for level in (one["name"] for one in run.record["config"]["levels"])
        if len(run.rows[run.rows["level"] == level]) < run.tasks_per_level
    ]
    if missing:
        notes.append(f"Incomplete run; tasks done: {', '.join(missing)}.")
    return notes


def tampering_notes(arms: Sequence[Arm]) -> list[str]:
    """Which flags and suspects each arm has, and where the two graders disagree; empty where there is none."""
    notes = []
    for arm in arms:
        tasks = arm.tasks
        counts = Counter(flag for flags in tasks["flags"] for flag in flags.split())
        if counts:
            listed = ", ".join(f"{flag} {count}" for flag, count in sorted(counts.items()))
            notes.append(f"{arm.label}: flagged tasks (verdicts unchanged): {listed}.")
        for what, chosen in (
            ("Suspect, the patch only rewrites outcomes", tasks["suspect"]),
            ("Verdicts of graders 5.x and 4.1 differ", tasks["resolved"] != tasks["resolved_v4"]),
        ):
            if chosen.any():
                names = ", ".join(sorted(set(tasks["instance_id"][chosen])))
                notes.append(f"{arm.label}: {what} in {int(chosen.sum())} tasks: {names}.")
    return notes


def format_bytes(count: float) -> str:
    """MiB below one GiB, else GiB."""
    if pd.isna(count):
        return UNKNOWN
    return f"{count / _MEBI:.0f} MiB" if count < _GIBI else f"{count / _GIBI:.1f} GiB"


def format_share(value: float) -> str:
    """A fraction as a percentage without the sign."""
    return f"{100 * value:.1f}"


def _format_row(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    return (
        row["level"],
        format_bytes(row["weights_bytes"]),
        f"{row['resolved']}/{row['answers']}",
        f"{format_share(row['score'])}% [{format_share(row['low'])}, {format_share(row['high'])}]",
        str(row["infra_error"] + row["wall_clock"]),
        _format_number(row["steps"], ".1f"),
        _format_number(row["tokens"], ",.0f"),
        _format_number(row["tokens_per_second"], ".1f"),
        _format_number(row["perplexity"], ".3f"),
    )


def _format_number(value: float, spec: str) -> str:
    return UNKNOWN if pd.isna(value) else format(value, spec)


def _share(part: float | None, whole: float | None) -> float:
    return float("nan") if part is None or not whole else float(part) / float(whole)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
