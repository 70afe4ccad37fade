"""Refuses to compare what cannot be compared."""

from collections.abc import Sequence
from typing import Any

from harness.errors import UserError
from harness.report.arms import Arm, Run

_DIGITS = 16


def check_comparable(arms: Sequence[Arm], allow: Sequence[str] = ()) -> dict[str, str]:
    """Differences between the runs of `arms` that `allow` accepts: what differs, by field.

    Raises `UserError` for a difference that is not allowed, and for an `allow` that is no field. Quant, weights and
    model are what a level is, so they may differ; sampling seeds may too, because instances are the pairs.
    """
    first = arms[0].run
    known = _conditions(first)
    for field in allow:
        if field not in known:
            raise UserError(f"--allow {field}: no such field; expected one of {', '.join(known)}")
    accepted: dict[str, str] = {}
    for arm in arms[1:]:
        for field, difference in _find_differences(first, arm.run).items():
            if field not in allow:
                raise UserError(
                    f"{arm.run.paths.record}: {field}: {difference}; compare runs with equal {field}, or accept it "
                    f"with --allow {field}"
                )
            accepted.setdefault(field, difference)
    return accepted


def _conditions(run: Run) -> dict[str, dict[str, Any]]:
    """Keys of the run record that must be equal, by field."""
    record, config = run.record, run.record["config"]
    agent, sampling = dict(config["agent"]), dict(config["sampling"])
    profile, external = agent.pop("profile", None), agent.pop("external", None)
    sampling.pop("seed", None)
    budgets = {f"config.agent.{key}": value for key, value in agent.items()}
    budgets["config.endpoint.max_context"] = config.get("endpoint", {}).get("max_context")
    budgets["config.restore_tests"] = config.get("restore_tests", False)
    budgets["config.grading_timeout"] = config.get("grading_timeout")
    return {
        "dataset": {"dataset.sha256": _shorten(record["dataset"].get("sha256"))},
        "profile": {
            "config.agent.profile": profile,
            "config.agent.external": external,
            "agent_version": record.get("agent_version", 1),
        },
        "prompts": {"prompts_sha256": _shorten(record.get("prompts_sha256"))},
        "sampling": {f"config.sampling.{key}": value for key, value in sampling.items()},
        "budgets": budgets,
        "harness_version": {"harness_version": record.get("harness_version")},
    }


def _find_differences(first: Run, second: Run) -> dict[str, str]:
    found: dict[str, str] = {}
    left, right = _conditions(first), _conditions(second)
    for field, values in left.items():
        for key in sorted(values.keys() | right[field].keys()):
            ours, theirs = values.get(key), right[field].get(key)
            if ours != theirs:
                found.setdefault(field, f"{key} is {ours} in {first.run_id} and {theirs} in {second.run_id}")
    return found


def _shorten(digest: str | None) -> str | None:
    return digest[:_DIGITS] if digest else None
