"""The official run report, schema version 2, and its face on a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.grading.results import Graded

_COUNTS = {
    "total_instances": "Total instances",
    "submitted_instances": "Instances submitted",
    "completed_instances": "Instances completed",
    "incomplete_instances": "Instances without a prediction",
    "resolved_instances": "Instances resolved",
    "unresolved_instances": "Instances unresolved",
    "infra_failure_instances": "Instances with likely infrastructure failures",
    "ambiguous_failure_instances": "Instances with ambiguous failures",
    "empty_patch_instances": "Instances with empty patches",
    "error_instances": "Instances with errors",
}
# Official runs leave no report of these: the patch did not apply, the tests took too long, the sandbox failed.
_ERRORS = ("patch_failed", "timeout")


def build_run_report(instance_ids: Sequence[str], graded: Mapping[str, Graded]) -> dict[str, Any]:
    """Counts and id lists with the keys and meanings of swebench 5.0.2's `make_run_report`.

    `graded` holds the instances that had a prediction. Failures stay in the score whatever their reason.
    """
    statuses = {instance_id: item.verdict.status if item.verdict else "error" for instance_id, item in graded.items()}
    errors = {name for name, status in statuses.items() if status in (*_ERRORS, "error")}
    empty = {name for name, status in statuses.items() if status == "empty_patch"}
    completed = set(statuses) - errors - empty
    resolved = {name for name in completed if statuses[name] == "resolved"}
    signs = {name: graded[name].sign for name in (completed - resolved) | errors}
    reasons = {name: sign for name, sign in signs.items() if sign}
    ids = {
        "completed": completed,
        "incomplete": set(instance_ids) - set(graded),
        "empty_patch": empty,
        "submitted": set(graded),
        "resolved": resolved,
        "unresolved": completed - resolved,
        "infra_failure": {name for name, sign in reasons.items() if sign.environment},
        "ambiguous_failure": {name for name, sign in reasons.items() if not sign.environment},
        "error": errors,
    }
    return {
        "total_instances": len(instance_ids),
        **{f"{kind}_instances": len(members) for kind, members in ids.items() if kind != "incomplete"},
        **{f"{kind}_ids": sorted(members) for kind, members in ids.items()},
        "failure_reasons": {name: reasons[name].reason for name in sorted(reasons)},
        "schema_version": 2,
    }


def render_run_report(report: Mapping[str, Any], graded: Mapping[str, Graded]) -> Iterable[str]:
    """Lines for a terminal: the counts, then every instance that is not simply resolved or unresolved."""
    counts = {**report, "incomplete_instances": len(report["incomplete_ids"])}
    width = max(map(len, _COUNTS.values()))
    yield from (f"{label:<{width}}  {counts[key]:>5}" for key, label in _COUNTS.items())
    for name, item in graded.items():
        status = item.verdict.status if item.verdict else "sandbox failed"
        if status not in ("resolved", "unresolved", "empty_patch"):
            yield f"{name}: {status}{_explain(item)}"


def _explain(item: Graded) -> str:
    reasons = [item.problem, item.sign.reason if item.sign else ""]
    return "".join(f" ({reason})" for reason in reasons if reason)
