"""`RubricsConfig`: one YAML file describes one run of the rubric tasks completely."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from harness.config import EndpointConfig, LevelConfig, RunConfig, SamplingConfig, check_run, load_settings
from harness.errors import UserError
from harness.rubrics.task import load_tasks


class JudgeConfig(BaseModel):
    """The model that answers questions of taste, behind any OpenAI-compatible server. Not of the candidates' family."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = Field(pattern=r"^https?://", description="up to and with /v1")
    model: str = Field(min_length=1, description="model name to send")
    api_key: str | None = Field(default=None, description="the key, or `$NAME` for an environment variable's value")
    images: bool = Field(default=False, description="the model takes pictures, and gets one beside each page's source")
    pairs: bool = Field(default=False, description="ask which of two pages is better: each level against the baseline")
    max_tokens: int = Field(default=1_024, ge=16, description="tokens of a vote")
    request_timeout: float = Field(default=300.0, gt=0)
    workers: int = Field(default=4, ge=1, description="answers judged at once")
    records: Path = Field(default=Path("results/judges"), description="where calibrations are kept")

    def describe(self) -> dict[str, object]:
        """What the record of a run says of the judge: no key, nothing that is only of this machine."""
        return self.model_dump(mode="json", include={"base_url", "model", "images", "pairs", "max_tokens"})


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
    checkers: int | None = Field(
        default=None, ge=1, description="answers checked at once; None: one for each core, with 1 GiB free for each"
    )
    judge: JudgeConfig | None = Field(default=None, description="None: only what can be executed is scored")
    results: Path = Path("results/runs")

    @property
    def baseline_name(self) -> str:
        """The level that the others are compared with."""
        return self.baseline or self.levels[0].name

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
    _check_judge(path, config)
    try:
        load_tasks(config.tasks)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def _check_judge(path: Path, config: RubricsConfig) -> None:
    """Raise `UserError` for a judge of a candidate's family: models favour what they could have written themselves."""
    if config.judge is None:
        return
    for level in config.levels:
        candidate = level.model or config.endpoint.served_model or config.model or ""
        if find_family(candidate) and find_family(candidate) == find_family(config.judge.model):
            raise UserError(
                f"{path}: judge.model: {config.judge.model} is of the same family as {candidate}, and models favour "
                "their own kind; name another"
            )


def find_family(model: str) -> str:
    """The letters that the last part of a model's name begins with, lower case: `qwen` of `Qwen/Qwen3-Coder-Next`."""
    match = re.match(r"[a-z]+", model.rpartition("/")[2].lower())
    return match[0] if match else ""
