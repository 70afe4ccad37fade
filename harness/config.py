"""`RunConfig`: one YAML file under `configs/` describes one run completely."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.sizes import parse_size

LEVELS_FILE = "levels.yaml"
S = TypeVar("S", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExternalConfig(_Section):
    """A command-line agent of somebody else, run inside the sandbox; see `harness.agent.external` for what it finds."""

    name: str = Field(min_length=1, description="agent and version, for the record: mini-swe-agent 2.4.6")
    command: str = Field(min_length=1, description="a bash command; ends when the work is done")
    folders: tuple[Path, ...] = Field(default=(), description="where the agent is installed; shown inside, read-only")
    env: dict[str, str] = Field(default={}, description="environment variables of the command")


class AgentConfig(_Section):
    """Which agent works, and its budgets. Budgets are steps and tokens; the wall clock is only a safety net."""

    profile: Literal["tools", "text", "mini", "editor", "external"] = "tools"
    step_limit: int = Field(default=250, ge=1)
    token_limit: int = Field(default=2_000_000, ge=1, description="tokens of a task; those sent again count once")
    context_limit: int | None = Field(default=None, description="None: what the endpoint reports")
    format_error_limit: int = Field(default=3, ge=1, description="consecutive malformed answers")
    command_timeout: float = Field(default=60.0, gt=0, description="seconds per command")
    observation_limit: int = Field(default=10_000, ge=200, description="characters of output shown to the model")
    wall_clock: float = Field(default=7_200.0, gt=0, description="seconds per task")
    external: ExternalConfig | None = Field(default=None, description="the agent of profile external")


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
    api_key: str | None = Field(default=None, description="the key, or `$NAME` for an environment variable's value")
    served_model: str | None = Field(default=None, description="model name to send; None asks /v1/models")
    max_context: int | None = None
    request_timeout: float = Field(default=1_800.0, gt=0)
    start_timeout: float = Field(default=600.0, gt=0)
    host: str = Field(default="127.0.0.1", description="address at which a started engine listens and is asked")
    engine_command: tuple[str, ...] = Field(default=("sweq-engine",), min_length=1)
    engine_args: tuple[str, ...] = Field(default=(), description="added to `sweq-engine serve`")


class LevelConfig(_Section):
    """One quantization level: a name for tables, and what differs at it. `base_url` overrides the endpoint's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also a folder's name")
    quant: str | None = None
    model: str | None = None
    base_url: str | None = None
    description: str = ""


class DockerConfig(_Section):
    """Which daemon makes the containers, and what runs them."""

    host: str | None = Field(
        default=None, min_length=1, description="unix:///run/podman/podman.sock, ...; None: what DOCKER_HOST says"
    )
    runtime: str | None = Field(default=None, min_length=1, description="runsc, ...; None: the daemon's default")


class ImagesConfig(_Section):
    """Where Docker images of instances come from, and how much of the disk they may take."""

    source: Literal["local", "pull", "tar"] = Field(default="local", description="local: what is here already")
    registry: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?(/[a-z0-9._/-]+)?$",
        description="HOST[:PORT][/prefix] of a mirror, for source pull; None: Docker Hub",
    )
    folder: Path | None = Field(default=None, description="archives of `docker save`, for source tar")
    disk_budget: Annotated[int, BeforeValidator(parse_size)] | None = Field(
        default=None, description="bytes, or a size such as 40G, of all images that runs brought; None: what is free"
    )
    prefetch: int = Field(default=2, ge=0, description="images brought ahead of their use")


class RunConfig(_Section):
    """A whole run: dataset x levels x repeats."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also part of a folder's name")
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
    docker: DockerConfig = DockerConfig()
    images: ImagesConfig = ImagesConfig()
    agent_workers: int = Field(default=4, ge=1, description="tasks talking to the model at once")
    grading_workers: int = Field(default=2, ge=1)
    grading_timeout: float = Field(default=1_800.0, gt=0)
    levels_at_once: int | None = Field(
        default=None,
        ge=1,
        description="levels whose servers are up at once, each instance going through all of them before the next one; "
        "None: 1 with endpoint.kind engine, all with url. The others take turns, a block of instances each",
    )
    block: int | None = Field(
        default=None,
        ge=1,
        description="instances of a repeat before other levels take their turn; None: all. Smaller blocks leave more "
        "instances that all levels have answered after an early stop, and start servers more often",
    )
    executor: Literal["local", "ray"] = Field(default="local", description="ray: agents and tests on a Ray cluster")
    restore_tests: bool = Field(
        default=False, description="put test files back by our own hand before the tests; not the official way"
    )
    perplexity_text: Path | None = Field(default=None, description="text scored per level; engine endpoints only")
    divergence: bool = Field(
        default=False, description="measure the divergence from the baseline too; two levels are in memory then"
    )
    results: Path = Path("results/runs")


def make_images_config(registry: str | None, folder: Path | None, disk_budget: str | None) -> ImagesConfig:
    """The images section that command-line options stand for: none at all is `local`; a budget alone, Docker Hub."""
    source = "tar" if folder is not None else "pull" if registry or disk_budget else "local"
    data = {"source": source, "registry": registry, "folder": folder, "disk_budget": disk_budget}
    try:
        images = ImagesConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        wanted = "expected HOST[:PORT][/prefix]" if option == "--registry" else first["ctx"]["error"]
        raise UserError(f"{option}: {wanted}, not {first['input']!r}") from error
    check_images("--image-folder", images)
    return images


def describe(section: BaseModel) -> dict[str, Any]:
    """The section as JSON-ready data, for the run record."""
    return section.model_dump(mode="json")


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that `path` describes, with `--set key.sub=value` overrides (values parsed as YAML).

    A level is a mapping, or a plain string: a name of `levels.yaml` beside the file, or the quant itself where there
    is no such file; any name where servers run already. Raises `UserError`, one line that names the file, the key and
    what would be right.
    """
    config = load_settings(path, overrides, RunConfig)
    check_run(path, config)
    return config


def served_at(base_url: str) -> list[str]:
    """Overrides that turn any run into one against a server that runs already: one level, `served`, of what it serves.

    What only an engine of our own can measure is left out.
    """
    endpoint = ["endpoint.kind=url", f"endpoint.base_url={base_url}", "endpoint.engine_args=[]"]
    return [*endpoint, "model=null", "levels=[served]", "baseline=served", "perplexity_text=null", "divergence=false"]


def load_settings(path: Path, overrides: Sequence[str], kind: type[S]) -> S:
    """The settings of `kind` that `path` holds, overridden as for `load_config`; raises `UserError` as it does."""
    data = _read_mapping(path)
    keys = [_override(data, override) for override in overrides]
    if isinstance(data.get("levels"), list):
        endpoint = data.get("endpoint")
        ours = not isinstance(endpoint, dict) or endpoint.get("kind") != "url"
        data["levels"] = _resolve_levels(path, data["levels"], ours)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(path, keys, error, kind)) from error


def read_api_key(endpoint: EndpointConfig) -> str | None:
    """The endpoint's key, from the environment where `api_key` is `$NAME`; `UserError` when that is not set."""
    return read_key(endpoint.api_key, "endpoint.api_key")


def read_key(key: str | None, where: str) -> str | None:
    """The API key that `key` stands for, from the environment where it is `$NAME`; `where` is its place, for errors."""
    if key is None or not key.startswith("$"):
        return key
    if key[1:] not in os.environ:
        raise UserError(f"{where}: environment variable {key[1:]} is not set")
    return os.environ[key[1:]]


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); name a YAML file such as configs/demo.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; a configuration is a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds no mapping; a configuration is a mapping with at least name, dataset, levels")
    return data


def _override(data: dict[str, Any], override: str) -> str:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise UserError(f"--set {override}: expected key=value or key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML") from error
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {override}: {parent} is not a mapping; set {parent} as a whole")
    data[last] = value
    return key


def _resolve_levels(path: Path, levels: list[Any], ours: bool) -> list[Any]:
    """Names as mappings; what a server of somebody else's has (not `ours`) may be called anything."""
    if not ours:
        return [{"name": level} if isinstance(level, str) else level for level in levels]
    file = path.parent / LEVELS_FILE
    known = _read_mapping(file) if file.exists() else None
    return [_resolve_level(path, file, known, level) if isinstance(level, str) else level for level in levels]


def _resolve_level(path: Path, file: Path, known: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if known is None:
        return {"name": name, "quant": name}
    if name not in known:
        raise UserError(f"{path}: levels: unknown level {name!r}{_suggest(name, known)}; {file} has {', '.join(known)}")
    if not isinstance(known[name], dict):
        raise UserError(f"{file}: {name}: expected a mapping with quant and description")
    return {"name": name, **known[name]}


def _explain(path: Path, overridden: list[str], error: ValidationError, kind: type[BaseModel]) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    source = f"--set {key}" if key in overridden else f"{path}: {key}"
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1], kind)
        return f"{source}: unknown key{_suggest(str(first['loc'][-1]), known)}; known here: {', '.join(known)}"
    if first["type"] == "missing":
        return f"{source}: missing, and it has no default"
    if first["type"] == "model_type":
        return (
            f"{source}: expected a mapping with some of {', '.join(_known_keys(first['loc'], kind))}; "
            f"not {first['input']!r}"
        )
    if first["type"] == "too_short":
        return f"{source}: expected at least {first['ctx']['min_length']} item"
    if first["type"] == "value_error":
        return f"{source}: {first['ctx']['error']}, not {first['input']!r}"
    return f"{source}: {first['msg'].lower()}, not {first['input']!r}"


def _known_keys(location: tuple[int | str, ...], kind: type[BaseModel]) -> list[str]:
    """The keys of the section at `location`, found by following the fields' types down from `kind`."""
    for part in location:
        if isinstance(part, str) and part in kind.model_fields:
            kind = _find_section(kind.model_fields[part].annotation) or kind
    return list(kind.model_fields)


def _find_section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds: itself, one of a tuple, or optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _find_section(part))), None)


def _suggest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def check_run(path: Path, config: RunConfig) -> None:
    """Raise `UserError` where keys that are right by themselves do not fit one another."""
    names = [level.name for level in config.levels]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: levels: {name} appears more than once; every level needs its own name")
    if config.baseline is not None and config.baseline not in names:
        raise UserError(f"{path}: baseline: {config.baseline!r} is not a level of this run ({', '.join(names)})")
    if config.perplexity_text is not None and not config.perplexity_text.is_file():
        raise UserError(f"{path}: perplexity_text: no file {config.perplexity_text} under {Path.cwd()}")
    check_images(f"{path}: images", config.images)
    _check_external(path, config.agent)
    check = _check_url if config.endpoint.kind == "url" else _check_engine
    check(path, config)


def check_images(where: str, images: ImagesConfig) -> None:
    """Raise `UserError` where keys of the section contradict one another."""
    if images.source == "tar" and images.folder is None:
        raise UserError(f"{where}.folder: needed with source tar: a folder of archives that `docker save` wrote")
    if images.folder is not None and images.source != "tar":
        raise UserError(f"{where}.folder: only used with source tar; set that, or remove the key")
    if images.folder is not None and not images.folder.exists():
        raise UserError(f"{where}.folder: no folder {images.folder} under {Path.cwd()}")
    if images.disk_budget is not None and images.source == "local":
        raise UserError(f"{where}.disk_budget: only used with source pull or tar; set one, or remove the budget")
    if images.registry is not None and images.source != "pull":
        raise UserError(f"{where}.registry: only used with source pull; set that, or remove the key")


def _check_external(path: Path, agent: AgentConfig) -> None:
    if (agent.profile == "external") != (agent.external is not None):
        raise UserError(
            f"{path}: agent.external: needed with agent.profile external, and only there; it takes "
            + ", ".join(ExternalConfig.model_fields)
        )
    for folder in agent.external.folders if agent.external else ():
        if not folder.is_absolute() or not folder.is_dir():
            raise UserError(f"{path}: agent.external.folders: no folder {folder}; give absolute paths of folders here")


def _check_url(path: Path, config: RunConfig) -> None:
    for level in config.levels:
        url = level.base_url or config.endpoint.base_url
        if url is None:
            raise UserError(f"{path}: endpoint.base_url: needed with endpoint.kind url (level {level.name} has none)")
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{path}: base_url: {url!r} of level {level.name} must start with http:// or https://")
    if config.perplexity_text is not None:
        raise UserError(f"{path}: perplexity_text: only measured with endpoint.kind engine; remove the key")
    if config.endpoint.engine_args:
        raise UserError(f"{path}: endpoint.engine_args: only used with endpoint.kind engine; remove the key")


def _check_engine(path: Path, config: RunConfig) -> None:
    if config.endpoint.base_url is not None:
        raise UserError(f"{path}: endpoint.base_url: only used with endpoint.kind url; set that, or remove the key")
    for level in config.levels:
        if level.base_url is not None:
            raise UserError(f"{path}: levels: base_url of {level.name} is only used with endpoint.kind url")
        if level.model is None and config.model is None:
            raise UserError(f"{path}: model: missing; with endpoint.kind engine it names a folder, a .gguf or a hub id")
