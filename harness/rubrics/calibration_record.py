"""What is known of a judge's agreement with the labelled set, and whether its points may count."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import replace_file
from harness.rubrics.config import JudgeConfig
from harness.rubrics.judge import hash_protocol
from harness.rubrics.labelled_set import hash_set, load_labelled
from harness.rubrics.score import JudgedRule
from harness.run.store import read_json

LEAST_KAPPA = 0.6
"""Below it a judge's points do not count: "substantial" begins at 0.61 (Landis and Koch 1977, Biometrics 33)."""


@dataclass(frozen=True)
class Protocol:
    """What a calibration holds for: this judge, asked this, about this set."""

    model: str
    protocol_sha256: str
    set_sha256: str

    @property
    def file_name(self) -> str:
        """`<model>-<hash>.json`."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", self.model).strip("-.") or "judge"
        return f"{slug}-{self.protocol_sha256[:12]}.json"


def find_protocol(config: JudgeConfig, rules: Sequence[JudgedRule]) -> Protocol:
    """The protocol by which `config` has judges asked now."""
    return Protocol(config.model, hash_protocol(rules, config.images), hash_set(load_labelled()))


def load_record(config: JudgeConfig, protocol: Protocol) -> dict[str, Any] | None:
    """The calibration by `protocol`; None where there is none, or one of another set."""
    path = config.records / protocol.file_name
    record = read_json(path) if path.exists() else None
    return dict(record) if record and record.get("set_sha256") == protocol.set_sha256 else None


def save_record(config: JudgeConfig, protocol: Protocol, record: dict[str, Any]) -> Path:
    """Keep a calibration; returns its file."""
    path = config.records / protocol.file_name
    replace_file(path, json.dumps(record, indent=1).encode() + b"\n")
    return path


def require_calibration(config: JudgeConfig, rules: Sequence[JudgedRule]) -> dict[str, Any]:
    """What a run's record says of its judge: model, hashes, and each criterion's kappa with its interval.

    Raises `UserError` where the judge has not been calibrated with these prompts, or agrees too little on a criterion.
    """
    protocol = find_protocol(config, rules)
    path = config.records / protocol.file_name
    record = load_record(config, protocol)
    if record is None or not record.get("criteria"):
        raise UserError(
            f"judge: {config.model} has no finished calibration for these prompts ({path}), without which its points "
            "do not count: run `sweq judge-calibrate -c` with this configuration, or remove `judge`"
        )
    kappas = {}
    for rule in rules:
        found = record["criteria"].get(rule.id)
        kappa = found["kappa"] if found and found["kappa"] is not None else math.nan
        if not kappa >= LEAST_KAPPA:
            raise UserError(
                f"judge: {config.model} agrees too little with the labels on {rule.id} (kappa {kappa:.2f}, at least "
                f"{LEAST_KAPPA} is needed; {path}): its points do not count; name another model, or remove `judge`"
            )
        kappas[rule.id] = {"kappa": kappa, "low": found["low"], "high": found["high"], "n": found["n"]}
    return {
        **config.describe(),
        "protocol_sha256": protocol.protocol_sha256,
        "set_sha256": protocol.set_sha256,
        "calibrated": record["calibrated"],
        "kappas": kappas,
    }
