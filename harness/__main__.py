"""`sweq`: the harness's command line. Heavy imports wait until a command needs them, so that --help is quick."""

import os
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, NoReturn, cast

import typer

from harness.cli import grading, images, reports
from harness.errors import EndpointError, SandboxError, UserError

_INTERRUPTED = 130
# Typer carries its own copy of click, whose base class of usage errors it does not export.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])

app = typer.Typer(
    help="What each quantization level of a local coding model costs, measured in solved GitHub issues.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    from harness.config import load_config, served_at

    overrides = [*(served_at(base_url) if base_url is not None else ()), *(override or ())]
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
    checkers: Annotated[
        int | None, typer.Option(min=1, help="with --answers: answers checked at once; default: one for each core")
    ] = None,
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
    for path in write_summary(run.folder, Console(width=_width()), checks=checks):
        typer.echo(path)
    if run.failed:
        typer.echo(
            f"{run.failed} scores or verdicts failed with the machine; the same command tries them again", err=True
        )
        raise typer.Exit(1)


@app.command(name="judge-calibrate")
def calibrate_judge(
    config: Annotated[Path, typer.Option("--config", "-c", help="a YAML file such as configs/rubrics.yaml")],
    override: Annotated[list[str] | None, typer.Option("--set", help="judge.model=value, ...; may be repeated")] = None,
) -> None:
    """Ask the rubrics' judge about answers with known labels, and say whether its points may count."""
    from rich.console import Console

    from harness.rubrics.calibration_run import calibrate
    from harness.rubrics.config import load_rubrics_config

    typer.echo(calibrate(load_rubrics_config(config, override or ()), Console(width=_width())))


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


for command in (*grading.COMMANDS, *reports.COMMANDS):
    app.command()(command)
app.add_typer(images.app, name="images")


def _width() -> int | None:
    """Columns for tables: the terminal's, and enough for all of them where there is no terminal."""
    return None if sys.stdout.isatty() else 120


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
