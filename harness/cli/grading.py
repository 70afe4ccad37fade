"""Grading without an agent."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    Dataset,
    DiskBudget,
    ImageFolder,
    Instances,
    Registry,
    Results,
    SandboxKind,
    Timeout,
    Workers,
)


def grade(
    dataset: Dataset,
    predictions: Annotated[str, typer.Option(help="gold, empty, or a .json/.jsonl file of predictions")],
    instance: Instances = None,
    run_id: Annotated[str | None, typer.Option(help="folder under --results; default: from what is graded")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the run report as one JSON document")] = False,
    sandbox: SandboxKind = "auto",
    workers: Workers = 2,
    timeout: Timeout = 1_800.0,
    results: Results = Path("results/runs"),
    registry: Registry = None,
    image_folder: ImageFolder = None,
    disk_budget: DiskBudget = None,
    restore_tests: Annotated[
        bool, typer.Option("--restore-tests", help="put test files back by our own hand; not the official way")
    ] = False,
) -> None:
    """Grade stored patches, without an agent.

    Missing images are brought with any of --registry, --image-folder and --disk-budget, which then applies.
    """
    from harness.config import make_images_config
    from harness.grading.runs import grade as grade_run

    status = grade_run(
        dataset,
        predictions,
        instance or (),
        run_id,
        sandbox=sandbox,
        workers=workers,
        timeout=timeout,
        results=results,
        as_json=as_json,
        images=make_images_config(registry, image_folder, disk_budget),
        restore=restore_tests,
        echo=typer.echo,
    )
    raise typer.Exit(status)


def validate(
    dataset: Dataset,
    instance: Instances = None,
    repeats: Annotated[int, typer.Option(min=1, help="runs of the gold patch, and of the unpatched tree")] = 2,
    run_id: Annotated[str | None, typer.Option(help="folder under --results; default: from the data set")] = None,
    sandbox: SandboxKind = "auto",
    workers: Workers = 2,
    timeout: Timeout = 1_800.0,
    results: Results = Path("results/runs"),
    registry: Registry = None,
    image_folder: ImageFolder = None,
    disk_budget: DiskBudget = None,
) -> None:
    """Find out which instances can be trusted here: gold resolves, the unpatched tree does not, every time."""
    from rich.console import Console

    from harness.config import make_images_config
    from harness.grading.validation import make_table
    from harness.grading.validation import validate as validate_instances

    path, found = validate_instances(
        dataset,
        instance or (),
        run_id,
        repeats=repeats,
        sandbox=sandbox,
        workers=workers,
        timeout=timeout,
        results=results,
        images=make_images_config(registry, image_folder, disk_budget),
    )
    Console().print(make_table(found))
    sound = sum(one.is_sound for one in found)
    typer.echo(f"{sound} of {len(found)} instances are sound here; written: {path}")
    raise typer.Exit(0 if sound == len(found) else 1)


def regrade(
    dataset: Dataset,
    instance: Annotated[str, typer.Option("--instance", "-i", help="instance id")],
    log: Annotated[Path, typer.Option(help="stored output of the eval script")],
    patch: Annotated[Path | None, typer.Option(help="the patch that was graded")] = None,
) -> None:
    """Print the verdict on a stored log as JSON: no sandbox, no network."""
    import json

    from harness.grading.runs import regrade as regrade_log

    typer.echo(json.dumps(regrade_log(dataset, instance, log, patch), indent=2))


COMMANDS = (grade, validate, regrade)
