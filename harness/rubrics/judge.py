"""A language model as the judge of taste: binary questions, three votes each, a majority or no verdict at all."""

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.agent.model import ChatModel, ContextExceeded, EndpointModel
from harness.config import SamplingConfig, read_key
from harness.errors import EndpointError
from harness.rubrics.ballot import Ballot, Choice, Page, choose_order, make_pair, make_question, prompts_sha256
from harness.rubrics.config import JudgeConfig
from harness.rubrics.score import JudgedRule
from harness.run.task import derive_seed

VOTES = 3
Outcome = Literal["yes", "no", "unscored", "infra"]
Preference = Literal["first", "second", "tie", "unscored", "infra"]
_FAILURES = 3


@dataclass(frozen=True)
class Vote:
    """One vote and its evidence: what was drawn for it, what the judge wrote, and what of that binds.

    `choice` is None for a reply off the menu (`status` unscored) and for a request that failed (`infra`).
    """

    status: Literal["scored", "unscored", "infra"]
    choice: Choice | None
    seed: int
    menu: dict[str, Choice]
    fence: str
    reply: str
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the votes come to on one criterion."""

    criterion: str
    outcome: Outcome
    votes: tuple[Vote, ...]


@dataclass(frozen=True)
class PairVerdict:
    """Which of two pages was preferred in both orders; `tie` where the orders differ."""

    outcome: Preference
    votes: tuple[Vote, ...]


class Judge:
    """Asks `model`, which must answer at temperature 0. Safe to share between threads.

    After three votes in a row that the server failed, `failing` is true, and who asks many questions may stop.
    """

    def __init__(self, model: ChatModel, images: bool) -> None:
        self.images = images
        self._model = model
        self._failures = 0
        self._guard = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.model_name

    @property
    def failing(self) -> bool:
        """Whether the server seems to be down."""
        return self._failures >= _FAILURES

    def decide(self, page: Page, rule: JudgedRule, *key: str) -> Verdict:
        """Put the question of `rule` three times; `key` names the answer, for the seeds.

        A page without the picture that the judge should see is not put to it: no votes, unscored.
        """
        if self._misses(page):
            return Verdict(rule.id, "unscored", ())
        votes = []
        for number in range(VOTES):
            seed = derive_seed(number, "/".join((*key, rule.id)), 0)
            ballot = make_question(self._see(page), rule.question, choose_order(("yes", "no"), number, seed))
            votes.append(self._ask(ballot, seed))
        return Verdict(rule.id, count(votes), tuple(votes))

    def prefer(self, first: Page, second: Page, *key: str) -> PairVerdict:
        """Which of two pages is more pleasing, asked once in either order; unscored where a picture is missing."""
        if self._misses(first) or self._misses(second):
            return PairVerdict("unscored", ())
        pages = (self._see(first), self._see(second))
        votes = []
        for number, (one, other) in enumerate((pages, pages[::-1])):
            seed = derive_seed(number, "/".join((*key, "pair")), 0)
            order = choose_order(("first", "second"), number, seed)
            votes.append(self._ask(make_pair(one, other, order), seed))
        return PairVerdict(settle(votes[0], votes[1]), tuple(votes))

    def _misses(self, page: Page) -> bool:
        return self.images and page.picture is None

    def _see(self, page: Page) -> Page:
        return page if self.images else Page(page.source)

    def _ask(self, ballot: Ballot, seed: int) -> Vote:
        drawn = (seed, ballot.menu, ballot.fence)
        try:
            reply = self._model.complete(ballot.messages, None, seed=seed)
        except ContextExceeded as error:
            return Vote("unscored", None, *drawn, "", f"does not fit the judge's context: {error}")
        except EndpointError as error:
            self._note(failed=True)
            return Vote("infra", None, *drawn, "", str(error))
        self._note(failed=False)
        choice = ballot.read(reply.text)
        if choice is None:
            return Vote("unscored", None, *drawn, reply.text, f"no line of the menu (ended by {reply.finish_reason})")
        return Vote("scored", choice, *drawn, reply.text)

    def _note(self, *, failed: bool) -> None:
        with self._guard:
            self._failures = self._failures + 1 if failed else 0


def open_judge(config: JudgeConfig) -> Judge:
    """The judge that `config` names. Raises `UserError` for a key whose environment variable is not set."""
    model = EndpointModel(
        config.base_url,
        read_key(config.api_key, "judge.api_key"),
        config.model,
        SamplingConfig(temperature=0.0, max_tokens=config.max_tokens),
        config.request_timeout,
        None,
    )
    return Judge(model, config.images)


def count(votes: Sequence[Vote]) -> Outcome:
    """The choice of more than half of all votes; else `infra` where a vote failed, else `unscored`."""
    for choice in ("yes", "no"):
        if 2 * sum(vote.choice == choice for vote in votes) > len(votes):
            return "yes" if choice == "yes" else "no"
    return "infra" if any(vote.status == "infra" for vote in votes) else "unscored"


def settle(straight: Vote, swapped: Vote) -> Preference:
    """The preference that both orders share. Judges repeat themselves after a swap only about two times in three
    (Zheng et al. 2023, arXiv 2306.05685), which is why orders that differ are a tie."""
    if "infra" in (straight.status, swapped.status):
        return "infra"
    if straight.choice is None or swapped.choice is None:
        return "unscored"
    if straight.choice == swapped.choice:
        return "tie"
    return "first" if straight.choice == "first" else "second"


def hash_protocol(rules: Iterable[JudgedRule], images: bool) -> str:
    """What a judge is asked, as a hash: prompts, questions, votes, and whether it sees pictures."""
    questions = sorted((rule.id, rule.question) for rule in rules)
    data: list[Any] = [prompts_sha256(), questions, VOTES, images]
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()
