"""What `run.json` says of a run: everything that a reader needs to trust or repeat its figures."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness.agent.profiles import VERSION, prompts_hash
from harness.config import LevelConfig, RunConfig, describe
from harness.errors import UserError
from harness.instances import Instance, dataset_hash
from harness.run.task import derive_seed

_OPERATIONAL = ("results", "agent_workers", "grading_workers", "levels_at_once", "block", "executor", "images")
_OPERATIONAL_ENDPOINT = ("start_timeout", "request_timeout", "api_key", "host")
"""Keys that change how a run is carried out but nothing of what it measures: free to change later."""

_LASTING_IDENTITY = ("weights_sha256", "recipe", "template_sha256")


def describe_config(config: RunConfig) -> dict[str, Any]:
    """What of the configuration makes the run what it is, as data; API keys are no part of it."""
    data = describe_lasting(config, _OPERATIONAL)
    if not data["divergence"]:
        del data["divergence"]
    if not data["restore_tests"]:
        del data["restore_tests"]
    if data["agent"]["external"] is None:
        del data["agent"]["external"]
    return data


def describe_lasting(config: BaseModel, operational: Sequence[str]) -> dict[str, Any]:
    """A configuration with levels and an endpoint as data, without the keys `operational` and those of the endpoint."""
    data = describe(config)
    for part, keys in ((data, operational), (data["endpoint"], _OPERATIONAL_ENDPOINT)):
        for key in keys:
            del part[key]
    for level in data["levels"]:
        del level["description"]
    return data


def name_run(config: RunConfig) -> str:
    """`<name>-<hash of the configuration>`: the same configuration continues the same run."""
    return name_by_content(config.name, describe_config(config))


def name_by_content(name: str, data: dict[str, Any]) -> str:
    """`<name>-<8 hex digits of data's hash>`."""
    return f"{name}-{hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]}"


def make_record(
    run_id: str, config: RunConfig, instances: Sequence[Instance], images: dict[str, Any]
) -> dict[str, Any]:
    """The record of a run that starts now (format in `harness.run.store`); `images` as the sandboxes describe them."""
    seed = config.sampling.seed
    return {
        "run_id": run_id,
        "harness_version": importlib.metadata.version("sweq"),
        "git_commit": _find_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": now(),
        "ended": None,
        "config": describe_config(config),
        "dataset": {
            "name": config.dataset,
            "sha256": dataset_hash(instances),
            "instances": len(instances),
            "instance_ids": [one.instance_id for one in instances],
        },
        "prompts_sha256": prompts_hash(config.agent.profile),
        "agent_version": VERSION,
        "sandboxes": images,
        "seeds": {
            "run": seed,
            "tasks": {
                f"{one.instance_id}/{repeat}": derive_seed(seed, one.instance_id, repeat)
                for one in instances
                for repeat in range(config.repeats)
            },
        },
        "levels": {},
    }


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def note_level(
    entry: dict[str, Any], level: LevelConfig, config: RunConfig, identity: dict[str, Any], record_path: Path
) -> None:
    """Put a level's server into its entry of the record.

    Raises `UserError` when the level has been served before by other weights, quant recipe or chat template.
    """
    before = entry.get("identity", identity)
    for key in _LASTING_IDENTITY:
        if before.get(key) != identity.get(key):
            raise UserError(
                f"{record_path}: levels.{level.name}.identity.{key} was {before.get(key)!r}, the server now says "
                f"{identity.get(key)!r}; serve what the run began with, or choose another --run-id"
            )
    entry.setdefault("perplexity", None)
    entry.setdefault("tokens_per_second", None)
    entry.update(
        quant=level.quant,
        model=level.model or config.model,
        base_url=level.base_url or config.endpoint.base_url,
        description=level.description,
        identity=identity,
        weights_bytes=identity.get("weights_bytes"),
    )


class Throughput:
    """Tokens that a level generated per second in which at least one task was at work, over all sessions of a run."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self._entry = entry
        self._covered = 0.0
        entry.setdefault("generated_tokens", 0)
        entry.setdefault("seconds_at_work", 0.0)

    def note(self, tokens: int, start: float, end: float) -> None:
        """A task was at work from `start` to `end` (seconds of one clock); calls come in the order of their ends."""
        entry = self._entry
        entry["generated_tokens"] += tokens
        entry["seconds_at_work"] += max(0.0, end - max(start, self._covered))
        self._covered = max(end, self._covered)
        if entry["seconds_at_work"] > 0:
            entry["tokens_per_second"] = entry["generated_tokens"] / entry["seconds_at_work"]


def _find_commit() -> str | None:
    """The commit of the harness's own repository, None where it runs from an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
