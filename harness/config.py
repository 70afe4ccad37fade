"""`RunConfig`: one YAML file under `configs/` describes one run completely."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AgentConfig(_Section):
    """Which agent works, and its budgets. Budgets are steps and tokens; the wall clock is only a safety net."""

    profile: Literal["tools", "text"] = "tools"
    step_limit: int = Field(default=250, ge=1)
    token_limit: int = Field(default=2_000_000, ge=1, description="prompt + completion tokens over the whole task")
    context_limit: int | None = Field(default=None, description="None: what the endpoint reports")
    format_error_limit: int = Field(default=3, ge=1, description="consecutive malformed answers")
    command_timeout: float = Field(default=60.0, gt=0, description="seconds per command")
    observation_limit: int = Field(default=10_000, ge=200, description="characters of output shown to the model")
    wall_clock: float = Field(default=7_200.0, gt=0, description="seconds per task")


class SamplingConfig(_Section):
    """What is sent with every request. `seed` is the run's; each task and step derives its own from it."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    max_tokens: int = Field(default=4_096, ge=1)
    seed: int = 0


class EndpointConfig(_Section):
    """The model's server: `engine` starts `sweq-engine serve` per level; with `base_url` a running server is used."""

    kind: Literal["engine", "url"] = "engine"
    base_url: str | None = None
    api_key: str | None = None
    served_model: str | None = Field(default=None, description="model name to send; None asks /v1/models")
    max_context: int | None = None
    request_timeout: float = Field(default=1_800.0, gt=0)
    start_timeout: float = Field(default=600.0, gt=0)
    engine_args: tuple[str, ...] = ()


class LevelConfig(_Section):
    """One quantization level: a name for tables, and what differs at it. `base_url` overrides the endpoint's."""

    name: str
    quant: str | None = None
    model: str | None = None
    base_url: str | None = None


class RunConfig(_Section):
    """A whole run: dataset x levels x repeats."""

    name: str
    dataset: str
    instances: tuple[str, ...] = Field(default=(), description="ids to keep; empty keeps all")
    limit: int | None = Field(default=None, ge=1, description="only the first N instances")
    model: str | None = None
    levels: tuple[LevelConfig, ...] = Field(min_length=1)
    baseline: str | None = Field(default=None, description="level the others are compared with; None: the first")
    repeats: int = Field(default=1, ge=1)
    endpoint: EndpointConfig = EndpointConfig()
    agent: AgentConfig = AgentConfig()
    sampling: SamplingConfig = SamplingConfig()
    sandbox: Literal["auto", "docker", "namespace"] = "auto"
    agent_workers: int = Field(default=4, ge=1, description="tasks talking to the model at once")
    grading_workers: int = Field(default=2, ge=1)
    grading_timeout: float = Field(default=1_800.0, gt=0)
    perplexity_text: Path | None = Field(default=None, description="text scored per level; engine endpoints only")
    results: Path = Path("results/runs")


def describe(section: BaseModel) -> dict[str, Any]:
    """The section as JSON-ready data, for the run record."""
    return section.model_dump(mode="json")
