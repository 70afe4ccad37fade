"""What is made of finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Allow


def compare(
    targets: Annotated[list[str], typer.Argument(help="run folders, run ids, or RUN:LEVEL")],
    baseline: Annotated[str | None, typer.Option(help="level the others are compared with")] = None,
    margin: Annotated[float, typer.Option(help="equivalence margin in percentage points")] = 2.0,
    allow: Allow = None,
    output: Annotated[Path | None, typer.Option(help="where compare.json goes")] = None,
    quarantine: Annotated[
        Path | None, typer.Option(help="a validation.json: leave out what is not sound, and say so")
    ] = None,
) -> None:
    """Compare levels pairwise over the same instances."""
    from harness.grading.validation import read_quarantine
    from harness.report.compare import compare as compare_targets

    raise typer.Exit(
        compare_targets(
            targets,
            baseline=baseline,
            margin=margin,
            allow=tuple(allow or ()),
            output=output,
            quarantine=read_quarantine(quarantine) if quarantine else {},
        )
    )


def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    allow: Allow = None,
) -> None:
    """Write report.html and the plots."""
    from harness.report.page import write_report

    typer.echo(write_report(runs, allow=tuple(allow or ())))


def export(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    form: Annotated[str, typer.Option("--format", help="submission, csv, markdown or latex")] = "markdown",
    output: Annotated[Path | None, typer.Option(help="file or folder; default: export/ in the run folder")] = None,
    level: Annotated[str | None, typer.Option(help="the level of a submission")] = None,
    repeat: Annotated[int, typer.Option(min=0, help="the repeat of a submission")] = 0,
) -> None:
    """Write a run in a form that others read."""
    from harness.report.export import export as export_run

    typer.echo(export_run(run, form, output, level, repeat))


def simulate(
    folder: Annotated[Path, typer.Argument(help="a new run folder")],
    instances: Annotated[int, typer.Option(min=1)] = 500,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Make a run folder of random data, marked as simulated, to see what a report looks like."""
    from harness.report.simulate import Simulation
    from harness.report.simulate import simulate as draw

    typer.echo(draw(folder, Simulation(instances=instances, repeats=repeats, seed=seed)))


COMMANDS = (compare, report, export, simulate)
