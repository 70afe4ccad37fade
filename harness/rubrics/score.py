"""Facts become a score: the first gate that holds gives the base, modifiers move it, hidden checks are counted apart.

The shape follows what makes rubric evaluations hold (HealthBench, PaperBench): binary leaf checks, fixed signed points
summed mechanically, evidence beside each, and an environment that broke is not a low score.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

LOWEST, HIGHEST, QUARTER = 0.0, 10.0, 0.25
_CONDITION = re.compile(
    r"(?P<negated>not )?(?P<name>[a-z][a-z0-9_]*)(?: (?P<sign><=|>=|<|>) (?P<number>\d+(?:\.\d+)?))?"
)
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_EVIDENCE_LIMIT = 2_000


@dataclass(frozen=True)
class Fact:
    """Something that was measured of an answer: true or false, or a number; `evidence` is what was seen."""

    value: bool | float
    evidence: str


class Condition(BaseModel):
    """`name`, `not name` or `name <= number` over facts."""

    model_config = ConfigDict(frozen=True)

    text: str

    @property
    def fact(self) -> str:
        """The name of the fact it asks for."""
        return self._parts()["name"]

    def holds(self, facts: Mapping[str, Fact]) -> bool:
        """Whether it holds; raises `KeyError` for a fact that was not measured."""
        parts = self._parts()
        value = facts[parts["name"]].value
        truth = _SIGNS[parts["sign"]](float(value), float(parts["number"])) if parts["sign"] else bool(value)
        return truth != bool(parts["negated"])

    def _parts(self) -> dict[str, str]:
        match = _CONDITION.fullmatch(self.text)
        if match is None:
            raise ValueError(f"{self.text!r} is no condition: expected `name`, `not name` or `name <= number`")
        return match.groupdict()


class Rule(BaseModel):
    """One line of a rubric: `points` where every condition of `when` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    points: float = Field(default=0.0, multiple_of=QUARTER)
    when: tuple[Condition, ...] = ()
    says: str = Field(default="", description="what it means, for tables and pages")

    @field_validator("when", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        texts = [value] if isinstance(value, str) else value
        return [{"text": text} for text in texts] if isinstance(texts, list | tuple) else texts

    @field_validator("when")
    @classmethod
    def _check(cls, value: tuple[Condition, ...]) -> tuple[Condition, ...]:
        for condition in value:
            _ = condition.fact
        return value

    def holds(self, facts: Mapping[str, Fact]) -> bool:
        """Whether all its conditions hold; a rule without conditions always does."""
        return all(condition.holds(facts) for condition in self.when)


class JudgedRule(Rule):
    """A matter of taste: where `when` holds a judge is asked, and `points` count where it says yes."""

    question: str = Field(min_length=1)


class Rubric(BaseModel):
    """How facts become points. The last gate has no condition, so that every answer has a base.

    `judged` never moves `compat`, which is what can be executed; its points are counted beside it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gates: tuple[Rule, ...] = Field(min_length=2)
    modifiers: tuple[Rule, ...] = ()
    hidden: tuple[Rule, ...] = Field(min_length=1)
    judged: tuple[JudgedRule, ...] = ()

    @field_validator("gates")
    @classmethod
    def _ends_open(cls, gates: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if gates[-1].when:
            raise ValueError("the last gate must have no `when`")
        return gates

    def facts(self) -> set[str]:
        """Names of all facts that the rules ask for."""
        rules = (*self.gates, *self.modifiers, *self.hidden, *self.judged)
        return {condition.fact for rule in rules for condition in rule.when}


@dataclass(frozen=True)
class Check:
    """One rule applied to one answer. `points` is what it added: a modifier that did not hold adds 0."""

    id: str
    kind: Literal["gate", "modifier", "hidden"]
    passed: bool
    points: float
    evidence: str


@dataclass(frozen=True)
class Score:
    """`compat` in 0..10 on quarter points, `hidden` in 0..1; both None where `status` is `infra` (see `reason`)."""

    status: Literal["scored", "infra"]
    compat: float | None
    hidden: float | None
    checks: tuple[Check, ...] = ()
    reason: str = ""


def compute_score(rubric: Rubric, facts: Mapping[str, Fact]) -> Score:
    """The score of an answer of which `facts` are known.

    Hidden checks count only above the lowest gate: an answer that does not work cannot be robust.
    """
    base = next(number for number, gate in enumerate(rubric.gates) if gate.holds(facts))
    works = base < len(rubric.gates) - 1
    gates = [
        _check("gate", gate, facts, number == base, gate.points if number == base else 0.0)
        for number, gate in enumerate(rubric.gates[: base + 1])
    ]
    modifiers = [
        _check("modifier", rule, facts, held := rule.holds(facts), rule.points if held else 0.0)
        for rule in rubric.modifiers
    ]
    hidden = [_check("hidden", rule, facts, works and rule.holds(facts), 0.0) for rule in rubric.hidden]
    return Score(
        "scored",
        sum_points((*gates, *modifiers)),
        sum(check.passed for check in hidden) / len(hidden),
        (*gates, *modifiers, *hidden),
    )


def sum_points(checks: Sequence[Check], more: float = 0.0) -> float:
    """Points of all `checks` and `more`, clipped to 0..10, on quarter points."""
    total = sum(check.points for check in checks) + more
    return round(min(max(total, LOWEST), HIGHEST) / QUARTER) * QUARTER


def _check(
    kind: Literal["gate", "modifier", "hidden"], rule: Rule, facts: Mapping[str, Fact], passed: bool, points: float
) -> Check:
    return Check(rule.id, kind, passed, points, _evidence(rule.when, facts))


def _evidence(conditions: Sequence[Condition], facts: Mapping[str, Fact]) -> str:
    seen = [f"{c.text}: {facts[c.fact].value} ({facts[c.fact].evidence})" for c in conditions]
    return "; ".join(seen)[:_EVIDENCE_LIMIT] or "no other gate held"
