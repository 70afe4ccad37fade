"""Layers of images that nobody has described yet, from the table of estimates."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.instances import Instance
from harness.sandbox.images.shelf import Layer
from harness.sizes import parse_size

TABLE = Path(__file__).parent / "estimates.yaml"

EXPANSION = 2.5
"""Bytes on disk per byte of a gzip-compressed layer, until measured: our assumption for Python environments."""


def estimate_layers(instance: Instance) -> tuple[Layer, ...]:
    """Base, environment and instance layer, in bytes on disk (see `estimates.yaml` for where the figures are from)."""
    table = _read_table()
    own = table["instance"].get(instance.repo, table["other"])
    return (
        Layer("estimated:base", parse_size(table["base"])),
        Layer(f"estimated:{instance.repo}:{instance.version}", parse_size(table["environment"])),
        Layer(f"estimated:{instance.instance_id}", parse_size(own)),
    )


@cache
def _read_table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = yaml.safe_load(TABLE.read_text())
    return table
