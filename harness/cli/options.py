"""Options that several commands take."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Dataset = Annotated[str, typer.Option(help="starter, starter-500, a hub id, or a .parquet/.json/.jsonl file")]
Instances = Annotated[list[str] | None, typer.Option("--instance", "-i", help="only this instance; may be repeated")]
Registry = Annotated[
    str | None, typer.Option("--registry", help="HOST[:PORT][/prefix] of a mirror; docker.io is Docker Hub")
]
DiskBudget = Annotated[str | None, typer.Option("--disk-budget", help="such as 40G or 512MiB")]
SandboxKind = Literal["auto", "docker", "namespace"]
Workers = Annotated[int, typer.Option(min=1, help="runs at once")]
Timeout = Annotated[float, typer.Option(help="seconds per run")]
Results = Annotated[Path, typer.Option(help="where run folders are made")]
ImageFolder = Annotated[Path | None, typer.Option("--image-folder", help="archives of `docker save`")]
Allow = Annotated[list[str] | None, typer.Option(help="a difference between runs to accept; may be repeated")]
