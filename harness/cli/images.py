"""`sweq images`: where the images of instances come from."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Dataset, DiskBudget, Instances, Registry
from harness.errors import UserError

app = typer.Typer(help="Docker images of instances.")


@app.command(name="build")
def build_images(
    instance: Instances = None,
    everything: Annotated[bool, typer.Option("--all", help="every instance of the dataset that can be built")] = False,
    source: Annotated[str, typer.Option(help="sdist: from the package registry's releases")] = "sdist",
    dataset: Dataset = "SWE-bench/SWE-bench_Verified",
) -> None:
    """Build the images of instances. A build that fails leaves the others to be built, and status 1."""
    from harness.instances import load_instances
    from harness.sandbox.images.sdist import build, find_buildable

    if bool(instance) == everything:
        raise UserError("images build: name instances with -i, or take --all")
    rows = load_instances(dataset, instance or ())
    result = build(find_buildable(rows) if everything else instance or (), rows, source, typer.echo)
    for image in result.images:
        typer.echo(f"{image.name} {image.digest}")
    for failure in result.failures.values():
        typer.echo(f"failed: {failure}", err=True)
    if result.failures:
        raise typer.Exit(1)


@app.command(name="pull")
def pull_images(
    instance: Instances = None,
    everything: Annotated[bool, typer.Option("--all", help="every instance of the dataset")] = False,
    dataset: Dataset = "SWE-bench/SWE-bench_Verified",
    registry: Registry = None,
    disk_budget: DiskBudget = None,
) -> None:
    """Pull the official images of instances; they stay until you remove them."""
    from harness.config import make_images_config
    from harness.instances import load_instances
    from harness.sandbox.images.commands import pull_images as pull

    if bool(instance) == everything:
        raise UserError("images pull: name instances with -i, or take --all")
    settings = make_images_config(registry or "docker.io", None, disk_budget)
    raise typer.Exit(1 if pull(load_instances(dataset, instance or ()), settings, typer.echo) else 0)


@app.command(name="load")
def load_images(
    place: Annotated[Path, typer.Argument(help="an archive of `docker save`, or a folder of them")],
) -> None:
    """Load images from archives."""
    from harness.sandbox.images.commands import load_images as load

    load(place, typer.echo)


@app.command(name="plan")
def plan_images(
    dataset: Dataset = "SWE-bench/SWE-bench_Verified",
    instance: Instances = None,
    disk_budget: DiskBudget = None,
    registry: Registry = None,
    prefetch: Annotated[int, typer.Option(min=0, help="images brought ahead")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="images in use at once")] = 4,
    passes: Annotated[int, typer.Option(min=1, help="levels x repeats: how often all are gone through")] = 1,
    steps: Annotated[bool, typer.Option("--steps", help="every pull and eviction, too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document")] = False,
) -> None:
    """What bringing the images of a dataset will cost, before anything is pulled; without --registry estimated."""
    import json

    from harness.config import make_images_config
    from harness.instances import load_instances
    from harness.sandbox.images.commands import plan_images as make_plan
    from harness.sandbox.images.plan import render

    settings = make_images_config(registry, None, disk_budget)
    plan = make_plan(
        load_instances(dataset, instance or ()),
        settings.registry,
        budget=settings.disk_budget,
        prefetch=prefetch,
        workers=workers,
        passes=passes,
        echo=lambda line: typer.echo(line, err=True),
    )
    for line in [json.dumps(plan.as_json(), indent=2)] if as_json else render(plan, steps=steps):
        typer.echo(line)


@app.command(name="list")
def list_images() -> None:
    """Images of instances on this machine, and the instances whose image can be built."""
    from harness.sandbox.images.commands import list_brought
    from harness.sandbox.images.sdist import list_images as list_all

    for line in [*list_all(), *list_brought()]:
        typer.echo(line)
