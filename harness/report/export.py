"""A run in the forms that others read: a SWE-bench submission, CSV, Markdown and LaTeX."""

import json
import shutil
from pathlib import Path

import yaml

from harness.errors import UserError
from harness.files import replace_file
from harness.report.arms import Arm, Run, list_arms, load_run
from harness.report.compare import HEADERS, comparison_notes, format_comparison
from harness.report.study import examine
from harness.report.tables import markdown_scores, markdown_table, quality_cells, score_cells, score_notes
from harness.run.paths import TaskPaths
from harness.run.store import read_text

FORMATS = ("submission", "csv", "markdown", "latex")

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
}  # fmt: skip


def export(run_dir: Path, form: str, output: Path | None = None, level: str | None = None, repeat: int = 0) -> Path:
    """Write a run in one of `FORMATS` and return the file's or folder's path; `output` defaults to the run's `export/`.

    A submission is one level and one repeat, so `level` must be named where there are several. Raises `UserError` for
    an unknown format, level or repeat, and for a submission folder that exists.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form}: no such format; expected one of {', '.join(FORMATS)}")
    run = load_run(run_dir)
    folder = run.paths.root / "export"
    if form == "submission":
        return _export_submission(_find_arm(run, level), repeat, output, folder)
    path = output or folder / f"tables.{ {'csv': 'csv', 'markdown': 'md', 'latex': 'tex'}[form] }"
    texts = {"csv": to_csv, "markdown": to_markdown, "latex": to_latex}
    replace_file(path, texts[form](run).encode("utf-8", "replace"))
    return path


def to_csv(run: Run) -> str:
    """One line per task with the columns of `results.parquet`; a first column `simulated` where the data are."""
    rows = run.rows.copy()
    if run.is_simulated:
        rows.insert(0, "simulated", True)
    return str(rows.to_csv(index=False, lineterminator="\n"))


def to_markdown(run: Run) -> str:
    """Scores, comparison and quality as Markdown tables."""
    study = examine(run)
    parts = [f"# {run.run_id}\n", markdown_scores(run)]
    if study.comparisons:
        cells = [HEADERS, *map(format_comparison, study.comparisons)]
        parts += [f"Baseline: {study.comparisons[0].baseline.label}\n", markdown_table(cells)]
        parts += [f"{note}\n" for note in comparison_notes(study.comparisons, {})]
    return "\n".join([*parts, markdown_table(quality_cells(study.scores))])


def to_latex(run: Run) -> str:
    """Scores, comparison and quality as LaTeX tables for the package booktabs."""
    study = examine(run)
    simulated = "SIMULATED DATA. " if run.is_simulated else ""
    dataset = run.record["dataset"]["name"]
    notes = " ".join(score_notes(run))
    parts = [_latex(score_cells(run), f"{simulated}Scores on {dataset}. {notes}")]
    if study.comparisons:
        cells = [HEADERS, *map(format_comparison, study.comparisons)]
        parts.append(_latex(cells, f"{simulated}Against {study.comparisons[0].baseline.label}, percentage points."))
    parts.append(_latex(quality_cells(study.scores), f"{simulated}Quality and cost per level."))
    return "\n".join(parts)


def _latex(cells: list[tuple[str, ...]], caption: str) -> str:
    header, *lines = [" & ".join(map(_escape, row)) + r" \\" for row in cells]
    columns = "l" + "r" * (len(cells[0]) - 1)
    body = "\n".join(lines)
    return (
        f"\\begin{{table}}\n\\centering\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{header}\n\\midrule\n{body}\n"
        f"\\bottomrule\n\\end{{tabular}}\n\\caption{{{_escape(caption)}}}\n\\end{{table}}\n"
    )


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _find_arm(run: Run, level: str | None) -> Arm:
    arms = {arm.level: arm for arm in list_arms(run)}
    if level is None and len(arms) == 1:
        return next(iter(arms.values()))
    if level not in arms:
        said = "missing" if level is None else "no such level"
        raise UserError(f"--level {level or ''}: {said}; a submission is one level: {', '.join(arms)}")
    return arms[level]


def _export_submission(arm: Arm, repeat: int, output: Path | None, folder: Path) -> Path:
    """The layout of SWE-bench/experiments: all_preds.jsonl, metadata.yaml, README.md, trajs/, logs/<id>/."""
    tasks = arm.tasks[arm.tasks["repeat"] == repeat].sort_values("instance_id")
    if tasks.empty:
        raise UserError(f"--repeat {repeat}: level {arm.level} of {arm.run.run_id} has no such repeat")
    root = output or folder / f"{arm.run.run_id}.{arm.level}"
    if root.exists():
        raise UserError(f"{root}: exists already; remove it, or name another folder with --output")
    (root / "trajs").mkdir(parents=True)
    lines = []
    for instance_id in tasks["instance_id"]:
        paths = arm.run.paths.level(arm.level).task(instance_id, repeat)
        _copy_task(paths, root, instance_id)
        patch = read_text(paths.patch) if paths.patch.exists() else ""
        name = f"{arm.run.run_id}.{arm.level}"
        lines.append(json.dumps({"instance_id": instance_id, "model_name_or_path": name, "model_patch": patch}) + "\n")
    (root / "all_preds.jsonl").write_text("".join(lines))
    (root / "metadata.yaml").write_text(yaml.safe_dump(_describe(arm), sort_keys=False, allow_unicode=True))
    (root / "README.md").write_text(_introduce(arm, repeat, len(tasks), int(tasks["resolved"].sum())))
    return root


def _copy_task(paths: TaskPaths, root: Path, instance_id: str) -> None:
    if paths.trajectory.exists():
        shutil.copyfile(paths.trajectory, root / "trajs" / f"{instance_id}.json")
    logs = root / "logs" / instance_id
    logs.mkdir(parents=True)
    for path in (paths.patch, paths.report, paths.test_output):
        if path.exists():
            shutil.copyfile(path, logs / path.name)


def _describe(arm: Arm) -> dict[str, object]:
    config = arm.run.record["config"]
    model = str(arm.entry.get("model") or config.get("model") or "unknown")
    name = f"sweq ({config['agent']['profile']}) + {model} at {arm.level}"
    return {
        "info": {"name": f"SIMULATED: {name}" if arm.run.is_simulated else name, "logo": "", "report": "", "site": ""},
        "tags": {
            "checked": False,
            "model": [model],
            "org": [],
            "os_model": None,
            "os_system": True,
            "system": {"attempts": "1"},
        },
    }


def _introduce(arm: Arm, repeat: int, tasks: int, resolved: int) -> str:
    config, record = arm.run.record["config"], arm.run.record
    warning = "**Simulated data: drawn from a random generator, not measured.**\n\n" if arm.run.is_simulated else ""
    sampling = ", ".join(f"{key} {value}" for key, value in config["sampling"].items() if value is not None)
    return (
        f"# {arm.run.run_id}, level {arm.level}\n\n{warning}"
        f"{resolved} of {tasks} instances of {record['dataset']['name']} resolved (dataset sha256 "
        f"`{record['dataset'].get('sha256')}`), repeat {repeat} of {config['repeats']}.\n\n"
        f"- quantization: {arm.entry.get('quant') or 'as served'}\n- agent profile: {config['agent']['profile']}, "
        f"{config['agent']['step_limit']} steps at most\n- sampling: {sampling}\n"
        f"- sweq {record.get('harness_version')}\n\n"
        "Each instance was attempted once; tests and gold patches were never shown to the agent. What remains to be "
        "filled in before submitting: `logo`, `site`, `org`, `os_model` in metadata.yaml.\n"
    )
