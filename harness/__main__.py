"""`sweq`: the harness's command line. Heavy imports wait until a command needs them, so that --help is quick."""

import os
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, NoReturn, cast

import typer

from harness.errors import EndpointError, SandboxError, UserError

_INTERRUPTED = 130
# Typer carries its own copy of click, whose base class of usage errors it does not export.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])

app = typer.Typer(
    help="What each quantization level of a local coding model costs, measured in solved GitHub issues.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
images = typer.Typer(help="Docker images of instances.")
app.add_typer(images, name="images")

Dataset = Annotated[str, typer.Option(help="starter, a hub id, or a .parquet/.json/.jsonl file")]
Instances = Annotated[list[str] | None, typer.Option("--instance", "-i", help="only this instance; may be repeated")]
RegistryOption = Annotated[
    str | None, typer.Option("--registry", help="HOST[:PORT][/prefix] of a mirror; docker.io is Docker Hub")
]
BudgetOption = Annotated[str | None, typer.Option("--disk-budget", help="such as 40G or 512MiB")]
SandboxKind = Literal["auto", "docker", "namespace"]


@app.command(name="eval")
def evaluate(
    config: Annotated[Path, typer.Option("--config", "-c", help="a YAML file such as configs/demo.yaml")],
    run_id: Annotated[
        str | None, typer.Option(help="folder under results/runs; default: name and hash of the file")
    ] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value; may be repeated")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="a running OpenAI-compatible server instead of the engine")
    ] = None,
    executor: Annotated[
        Literal["local", "ray"] | None, typer.Option(help="where agents and tests run; default: the configuration's")
    ] = None,
    disk_budget: Annotated[str | None, typer.Option(help="of the images that runs bring, such as 40G")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="accepted and implied: the same command always continues")
    ] = False,
) -> None:
    """Run an agent over a dataset at every level, grade its patches, print the scores."""
    from harness.config import load_config

    overrides = list(override or ())
    if base_url is not None:
        overrides += ["endpoint.kind=url", f"endpoint.base_url={base_url}"]
    if executor is not None:
        overrides.append(f"executor={executor}")
    if disk_budget is not None:
        overrides.append(f"images.disk_budget={disk_budget}")
    settings = load_config(config, overrides)

    from harness.run.start import RunInterruptedError, run

    try:
        finished = run(settings, run_id, typer.echo)
    except RunInterruptedError as error:
        _leave_at_once(str(error), _INTERRUPTED)
    except UserError as error:
        _leave_at_once(str(error), 2)
    except (EndpointError, SandboxError) as error:
        _leave_at_once(str(error), 1)
    from harness.report.conclude import conclude

    if finished.fresh == 0:
        typer.echo("this run was already finished; its figures again:")
    conclude(finished.paths.root, typer.echo)
    if finished.infra_errors:
        typer.echo(f"{finished.infra_errors} tasks ended in infra_error; the same command tries them again", err=True)
        raise typer.Exit(1)


@app.command()
def grade(
    dataset: Dataset,
    predictions: Annotated[str, typer.Option(help="gold, empty, or a .json/.jsonl file of predictions")],
    instance: Instances = None,
    run_id: Annotated[str | None, typer.Option(help="folder under --results; default: from what is graded")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the run report as one JSON document")] = False,
    sandbox: SandboxKind = "auto",
    workers: Annotated[int, typer.Option(min=1, help="instances graded at once")] = 2,
    timeout: Annotated[float, typer.Option(help="seconds per instance")] = 1_800.0,
    results: Annotated[Path, typer.Option(help="where run folders are made")] = Path("results/runs"),
    registry: RegistryOption = None,
    image_folder: Annotated[Path | None, typer.Option("--image-folder", help="archives of `docker save`")] = None,
    disk_budget: BudgetOption = None,
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
        echo=typer.echo,
    )
    raise typer.Exit(status)


@app.command()
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


@app.command()
def compare(
    targets: Annotated[list[str], typer.Argument(help="run folders, run ids, or RUN:LEVEL")],
    baseline: Annotated[str | None, typer.Option(help="level the others are compared with")] = None,
    margin: Annotated[float, typer.Option(help="equivalence margin in percentage points")] = 2.0,
    allow: Annotated[
        list[str] | None, typer.Option(help="a difference between runs to accept; may be repeated")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="where compare.json goes")] = None,
) -> None:
    """Compare levels pairwise over the same instances."""
    from harness.report.compare import compare as compare_targets

    raise typer.Exit(
        compare_targets(targets, baseline=baseline, margin=margin, allow=tuple(allow or ()), output=output)
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    allow: Annotated[
        list[str] | None, typer.Option(help="a difference between runs to accept; may be repeated")
    ] = None,
) -> None:
    """Write report.html and the plots."""
    from harness.report.page import write_report

    typer.echo(write_report(runs, allow=tuple(allow or ())))


@app.command()
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


@app.command()
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


@app.command()
def rubrics(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="a YAML file such as configs/rubrics.yaml")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="score stored answers, <task>/<sample>.md, without a model")
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="folder under results/runs")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="key.sub=value; may be repeated")] = None,
    output: Annotated[Path | None, typer.Option(help="folder of the scores of --answers")] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="with --answers: only this task; may be repeated")
    ] = None,
    checkers: Annotated[int, typer.Option(min=1, help="with --answers: answers checked at once")] = 2,
    checks: Annotated[bool, typer.Option("--checks", help="print how often each check passed")] = False,
) -> None:
    """Score five coding tasks by rubric: a model's answers at every level, or stored ones."""
    from rich.console import Console

    from harness.rubrics.config import load_rubrics_config
    from harness.rubrics.run import run_rubrics, score_answers
    from harness.rubrics.table import write_summary

    if (config is None) == (answers is None):
        raise UserError("name a configuration with -c, or stored answers with --answers")
    if config is not None:
        run = run_rubrics(load_rubrics_config(config, override or ()), run_id, typer.echo)
    elif answers is not None:
        folder = output or Path("results/runs") / (run_id or f"answers-{answers.resolve().name}")
        run = score_answers(answers, folder, tuple(task or ()), checkers, typer.echo)
    for path in write_summary(run, Console(), checks=checks):
        typer.echo(path)


@images.command(name="build")
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


@images.command(name="pull")
def pull_images(
    instance: Instances = None,
    everything: Annotated[bool, typer.Option("--all", help="every instance of the dataset")] = False,
    dataset: Dataset = "SWE-bench/SWE-bench_Verified",
    registry: RegistryOption = None,
    disk_budget: BudgetOption = None,
) -> None:
    """Pull the official images of instances; they stay until you remove them."""
    from harness.config import make_images_config
    from harness.instances import load_instances
    from harness.sandbox.images.commands import pull_images as pull

    if bool(instance) == everything:
        raise UserError("images pull: name instances with -i, or take --all")
    settings = make_images_config(registry or "docker.io", None, disk_budget)
    raise typer.Exit(1 if pull(load_instances(dataset, instance or ()), settings, typer.echo) else 0)


@images.command(name="load")
def load_images(
    place: Annotated[Path, typer.Argument(help="an archive of `docker save`, or a folder of them")],
) -> None:
    """Load images from archives."""
    from harness.sandbox.images.commands import load_images as load

    load(place, typer.echo)


@images.command(name="plan")
def plan_images(
    dataset: Dataset = "SWE-bench/SWE-bench_Verified",
    instance: Instances = None,
    disk_budget: BudgetOption = None,
    registry: RegistryOption = None,
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


@images.command(name="list")
def list_images() -> None:
    """Images of instances on this machine, and the instances whose image can be built."""
    from harness.sandbox.images.commands import list_brought
    from harness.sandbox.images.sdist import list_images as list_all

    for line in [*list_all(), *list_brought()]:
        typer.echo(line)


@app.command()
def doctor(
    base_url: Annotated[str | None, typer.Option(help="a running server to be asked, too")] = None,
    api_key: Annotated[str | None, typer.Option(help="its key, or $NAME of an environment variable")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="a configuration whose servers are asked")
    ] = None,
) -> None:
    """Check what a run needs: one line each, and how to mend it."""
    from harness.run.doctor import check_all
    from harness.run.doctor_endpoint import check_servers

    healthy = True
    for check in chain(check_all(), check_servers(base_url, api_key, config)):
        healthy = healthy and (check.passed or check.optional)
        typer.echo(check.describe())
    raise typer.Exit(0 if healthy else 1)


def _leave_at_once(message: str, status: int) -> NoReturn:
    """`_fail`, not waiting for threads of a stopped run that may hang in a request for half an hour."""
    print(_one_line(message), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Run the command line: a user's mistake is one line and exit status 2, a failing machine one line and 1."""
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except _UsageError as error:
        _fail(f"{error.format_message().removesuffix('.')}; see sweq --help", 2)
    except UserError as error:
        _fail(str(error), 2)
    except (EndpointError, SandboxError) as error:
        _fail(str(error), 1)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED)
    sys.exit(status or 0)


def _fail(message: str, status: int) -> NoReturn:
    print(_one_line(message), file=sys.stderr)
    sys.exit(status)


def _one_line(message: str) -> str:
    return f"sweq: {' '.join(message.split())}"


if __name__ == "__main__":
    main()
