"""A request on its way through the engine."""

from dataclasses import dataclass, field
from random import Random

from engine.cache.prefix import PrefixNode
from engine.cache.snapshots import Source
from engine.cache.swap import SwapImage
from engine.core.grammar import Matcher
from engine.core.penalties import Penalties
from engine.core.request import Request, TokenLogprob
from engine.core.text_stream import TextStream


@dataclass(eq=False)
class SequenceState:
    """One request's tokens, its share of the cache and its random numbers.

    `token_ids` are the prompt and all that was generated; the first `computed` of them have keys and values in
    `blocks`, and have gone into the DeltaNet state in `slot` if the model has one. The first `cached_blocks` blocks are
    in the prefix tree, `node` being the last of them. `rng` survives preemption, so that a request's text does not
    depend on when it was interrupted. `marks` are the lengths at which its state is to be kept for others, and
    `answer_node` the place of the latest that was kept while it generated. `cached_tokens` of the prompt were found in
    the cache, their state in the tier `cache_source`; `lost_tokens` had been computed when it was last preempted, and
    are in `image` if they were swapped out.
    """

    request: Request
    token_ids: list[int]
    rng: Random
    text: TextStream
    node: PrefixNode | None = None
    blocks: list[int] = field(default_factory=list)
    slot: int | None = None
    computed: int = 0
    cached_blocks: int = 0
    marks: tuple[int, ...] = ()
    answer_node: PrefixNode | None = None
    cached_tokens: int | None = None
    cache_source: Source | None = None
    lost_tokens: int = 0
    image: SwapImage | None = None
    index: int = 0
    penalties: Penalties | None = None
    matcher: Matcher | None = None
    scored: dict[int, TokenLogprob] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still to be computed; 1 while decoding."""
        return len(self.token_ids) - self.computed

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def generated(self) -> int:
        return len(self.token_ids) - self.prompt_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether the logits of the prompt's tokens are wanted, which are not to be had from the cache."""
        return self.request.params.prompt_logprobs is not None and self.index == 0 and self.generated == 0


@dataclass(eq=False)
class Choices:
    """The sequences of one request that have not ended.

    Those in `held` wait until the first has computed the prompt, which they then find in the prefix tree.
    """

    scheduled: list[SequenceState]
    held: list[SequenceState]


@dataclass(frozen=True)
class Chunk:
    """The next `tokens` tokens of a sequence, to be computed in one step."""

    sequence: SequenceState
    tokens: int

    @property
    def start(self) -> int:
        return self.sequence.computed

    @property
    def token_ids(self) -> list[int]:
        return self.sequence.token_ids[self.start : self.start + self.tokens]

    @property
    def prompt_tokens(self) -> int:
        """How many of the tokens are the prompt's."""
        return max(0, min(self.tokens, self.sequence.prompt_tokens - self.start))

    @property
    def reaches_end(self) -> bool:
        """Whether the step computes the last known token, whose logits choose the next one."""
        return self.tokens == self.sequence.pending

    @property
    def logit_rows(self) -> range:
        """The rows whose logits are wanted."""
        if self.sequence.scores_prompt:
            return range(self.tokens)
        return range(self.tokens - 1, self.tokens) if self.reaches_end else range(0)
