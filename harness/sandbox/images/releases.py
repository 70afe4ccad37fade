"""The table `sdists.yaml`: which releases the images of which instances can be built from."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.sandbox.images.debian import SUITES

SDISTS = Path(__file__).parent / "sdists.yaml"


class Release(BaseModel):
    """One entry of `sdists.yaml`: a release, its environment, and the instances whose trees are made from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sdist: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.]+$")
    python: str
    instances: tuple[str, ...] = Field(min_length=1)
    pins: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    steps: tuple[str, ...] = ()
    editable: bool = True

    @property
    def project(self) -> str:
        """The name that the package index knows the release by."""
        return self.sdist.partition("==")[0]

    @property
    def name(self) -> str:
        """Project and version in one word."""
        return self.sdist.replace("==", "-").lower()


def load_releases(path: Path = SDISTS) -> list[Release]:
    """The table's releases; raises `UserError` naming the file and the key for anything that is not right.

    A key that starts with a dot holds what several entries share, and is no entry itself.
    """
    table = yaml.safe_load(path.read_text())
    if not isinstance(table, dict):
        raise UserError(f"{path}: must be a mapping of names to releases")
    entries = {key: _read(fields, f"{path}: {key}") for key, fields in table.items() if not str(key).startswith(".")}
    owner: dict[str, str] = {}
    for key, release in entries.items():
        for instance_id in release.instances:
            if instance_id in owner:
                raise UserError(f"{path}: {key}.instances: {instance_id} is in {owner[instance_id]} already")
            owner[instance_id] = key
    return list(entries.values())


def _read(fields: object, where: str) -> Release:
    try:
        release = Release.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join((where, *map(str, first['loc'])))}: {first['msg']}") from None
    if release.python not in SUITES:
        raise UserError(f"{where}.python: must be one of {', '.join(SUITES)}")
    return release
