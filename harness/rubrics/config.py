"""`RubricsConfig`: one YAML file describes one run of the rubric tasks completely."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from harness.config import EndpointConfig, LevelConfig, RunConfig, SamplingConfig, check_run, load_settings
from harness.errors import UserError
from harness.rubrics.task import load_tasks


class RubricsConfig(BaseModel):
    """Tasks x levels x samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also part of a folder's name")
    model: str | None = None
    levels: tuple[LevelConfig, ...] = Field(min_length=1)
    baseline: str | None = Field(default=None, description="level the others are compared with; None: the first")
    tasks: tuple[str, ...] = Field(default=(), description="rubric tasks; empty takes all")
    samples: int = Field(default=10, ge=1, description="answers per task and level")
    endpoint: EndpointConfig = EndpointConfig()
    sampling: SamplingConfig = SamplingConfig()
    workers: int = Field(default=4, ge=1, description="answers asked for at once")
    checkers: int = Field(default=2, ge=1, description="answers checked at once; each takes up to 1 GiB")
    results: Path = Path("results/runs")

    def as_run(self) -> RunConfig:
        """The part that the endpoint needs, in the form that it takes."""
        return RunConfig(
            name=self.name,
            dataset="starter",
            model=self.model,
            levels=self.levels,
            baseline=self.baseline,
            endpoint=self.endpoint,
            sampling=self.sampling,
            agent_workers=self.workers,
            results=self.results,
        )


def load_rubrics_config(path: Path, overrides: Sequence[str] = ()) -> RubricsConfig:
    """The run that `path` describes; raises `UserError` as `harness.config.load_config` does."""
    config = load_settings(path, overrides, RubricsConfig)
    check_run(path, config.as_run())
    try:
        load_tasks(config.tasks)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config
