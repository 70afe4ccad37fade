"""The step loop: requests in, outputs of each step out."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from random import Random
from typing import Any

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.core.grammar import GrammarCompiler
from engine.core.limits import check_limits
from engine.core.memory import cache_room, open_memory
from engine.core.penalties import Penalties
from engine.core.pipeline import Pipeline, PlainLauncher
from engine.core.placement import PlacedModel, place_model
from engine.core.ranks import MirroredRunner, MirroredState, MirroredSwap, Ranks
from engine.core.request import FinishReason, Request, SamplingParams, StepOutput, TokenLogprob
from engine.core.sampler import sample, score_prompt, token_logprob
from engine.core.scheduler import Scheduler
from engine.core.sequence import Choices, Chunk, SequenceState
from engine.core.text_stream import TextStream
from engine.errors import ContextLengthError, LostRankError, RequestError, UserError
from engine.parallel.group import Group
from engine.weights.loader import Checkpoint

logger = logging.getLogger(__name__)


class Engine:
    """Serves one checkpoint with continuous batching over a paged cache. Not thread-safe: one thread drives it.

    `max_context` counts prompt and completion tokens together. Raises UserError for a configuration that cannot be
    served and CheckpointError for a checkpoint the decoder cannot run.
    """

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, ranks: Ranks | None = None) -> None:
        check_limits(config)
        placed = place_model(checkpoint, config, ranks.group if ranks else Group())
        self.config = config
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        self.max_context = placed.max_context
        self.local_model = placed.model
        self._vocabulary = min(checkpoint.config.vocab_size, self.tokenizer.vocab_size)
        state = MirroredState(placed.state, ranks) if ranks and placed.state else placed.state
        self._memory = open_memory(placed.model, config, placed.plan, placed.cache.kv, state)
        if ranks and self._memory.swap is not None:
            self._memory.swap = MirroredSwap(self._memory.swap, ranks)
        self._scheduler = Scheduler(self._memory, max_running=config.max_running, max_step_tokens=config.step_tokens)
        self.ranks = ranks
        self._runner = MirroredRunner(placed.runner, ranks) if ranks else placed.runner
        self._pipeline = None if ranks else self._open_pipeline(placed)
        self._grammars = GrammarCompiler(self.tokenizer, self._vocabulary)
        self._device = torch.device(config.device)
        self._requests: dict[str, Choices] = {}
        self._over: set[str] = set()
        self._seeds = Random()
        self._generated = self._prefilled = 0
        self._room = cache_room(placed.cache, state, placed.plan)

    def close(self) -> None:
        """End the other ranks, if there are any; nothing can be computed afterwards."""
        if self.ranks is not None:
            self.ranks.close()

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def prepare(self, params: SamplingParams) -> None:
        """Check `params` and compile their grammar, so that `add` need not; RequestError as `add` raises it.

        Compiling takes up to seconds and nothing of the step loop: this method, unlike the others, is thread-safe.
        """
        params.check()
        outside = [token for token in params.logit_bias if not 0 <= token < self._vocabulary]
        if outside:
            raise RequestError(
                f"logit_bias names token id {outside[0]}; this model's are 0..{self._vocabulary - 1}",
                param="logit_bias",
            )
        if params.grammar is not None:
            self._grammars.compile(params.grammar)

    def add(self, request: Request) -> None:
        """Queue a request; RequestError (ContextLengthError) when it can never be served."""
        self._admit(request)
        seed = self._seeds.getrandbits(64) if request.params.seed is None else request.params.seed
        first, *others = [self._choice(request, seed, index) for index in range(request.params.n)]
        self._requests[request.request_id] = Choices([first], others)
        self._scheduler.add(first)
        self._over.discard(request.session_id or "")

    def abort(self, request_id: str) -> None:
        """Forget a request and free what it holds; nothing happens when it is unknown or finished."""
        choices = self._requests.pop(request_id, None)
        if choices is not None:
            for sequence in choices.scheduled:
                self._scheduler.remove(sequence)
            self._forget_if_over(choices.scheduled[0].request.session_id)

    def end_session(self, session_id: str) -> int:
        """Forget at once what only this conversation left in the cache; returns how many tokens that were.

        While requests of the conversation run, 0 is returned and what it holds is forgotten with the last of them.
        """
        self._over.add(session_id)
        return self._forget_if_over(session_id)

    def pin(self, token_ids: Sequence[int]) -> int:
        """Keep the longest cached prefix of `token_ids` in memory; returns its length in tokens.

        It stays until `unpin`, or until a request could not be served otherwise.
        """
        return self._memory.pin(token_ids)

    def unpin(self) -> None:
        """Let all pinned prefixes be forgotten like others."""
        self._memory.unpin()

    def step(self) -> list[StepOutput]:
        """Compute one batch and return what it produced, one output for each request that got a token or ended.

        LostRankError when the model runs over several ranks and one has ended.
        """
        with self.ranks.working() if self.ranks else nullcontext():
            return self._step()

    def _open_pipeline(self, placed: PlacedModel) -> Pipeline | None:
        """None where steps are done one after the other: see `EngineConfig.decode_ahead`."""
        if not self.config.decode_ahead or self.config.deterministic:
            return None
        return Pipeline(self._scheduler, placed.decode_graphs or PlainLauncher(placed.runner, self._vocabulary))

    def _step(self) -> list[StepOutput]:
        if self._pipeline is not None and self._pipeline.is_flying():
            return self._land(self._pipeline)
        scheduled = self._scheduler.schedule()
        if not scheduled:
            return []
        if self._pipeline is None or not self._pipeline.takes(scheduled):
            return self._complete(*self._forward(scheduled))
        prompt = sum(chunk.prompt_tokens for chunk in scheduled)
        try:
            self._pipeline.launch(scheduled)
        except Exception:
            return self._complete(*self._each_alone(scheduled))
        self._prefilled += prompt
        return self._land(self._pipeline)

    def _complete(self, chunks: list[Chunk], logits: Tensor, outputs: list[StepOutput]) -> list[StepOutput]:
        """What a step gives out whose logits are known."""
        ended = [chunk.sequence for chunk in chunks if chunk.reaches_end]
        for chunk in chunks:
            self._prefilled += chunk.prompt_tokens
            self._scheduler.commit(chunk)
        return outputs + self._extend(ended, logits)

    def _land(self, pipeline: Pipeline) -> list[StepOutput]:
        """What the step in flight gives out; the next one may be in flight then."""
        outputs = [self._accept(sequence, token) for sequence, token in pipeline.land()]
        for sequence in pipeline.take_spoilt():
            try:
                self._compute_state(sequence)
            except Exception as error:
                outputs.append(self._fail(sequence, error))
        return outputs

    def stats(self) -> dict[str, Any]:
        """Figures for a monitor: queue lengths, blocks, bytes set aside, and counts of tokens since start."""
        return {
            "running": len(self._scheduler.running),
            "waiting": len(self._scheduler.waiting),
            "generated_tokens": self._generated,
            "prefilled_tokens": self._prefilled,
            "preemptions": self._scheduler.preemptions,
            **self._room,
            **self._memory.stats(),
        }

    def device_time(self) -> tuple[float, int] | None:
        """Seconds of the device for decode steps launched so far, and their number; None where that is not measured."""
        return None if self._pipeline is None else self._pipeline.device_time()

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits float32 [len(token_ids), vocab_size] on CPU, through the cache and kernels that requests use.

        RequestError when the tokens are none, unknown or too many; UserError when running requests hold the blocks.
        """
        sequence = SequenceState(
            request=Request("logits", tuple(token_ids), SamplingParams(max_tokens=1)),
            token_ids=list(token_ids),
            rng=Random(0),
            text=TextStream(self.tokenizer.detokenizer(), ()),
        )
        self._check_ids(sequence.token_ids, completion=0)
        if not self._memory.borrow(sequence):
            raise UserError(f"{len(token_ids)} tokens need more KV blocks than running requests have left")
        parts = []
        try:
            while sequence.pending:
                chunk = Chunk(sequence, self._memory.next_tokens(sequence, self.config.step_tokens))
                with self.ranks.working() if self.ranks else nullcontext():
                    parts.append(self._runner.run([chunk], every_row=True).cpu())
                sequence.computed += chunk.tokens
        finally:
            self._memory.release(sequence)
        return torch.cat(parts)

    def _admit(self, request: Request) -> None:
        if request.request_id in self._requests:
            raise RequestError(f"request id {request.request_id!r} is in use already")
        self.prepare(request.params)
        self._check_ids(request.prompt_ids, request.params.max_tokens)

    def _choice(self, request: Request, seed: int, index: int) -> SequenceState:
        params = request.params
        return SequenceState(
            request=request,
            token_ids=list(request.prompt_ids),
            # Unsigned, because a negative seed would draw as its opposite does.
            rng=Random((seed + index) % 2**64),
            text=TextStream(self.tokenizer.detokenizer(), params.stop),
            index=index,
            penalties=Penalties(params, request.prompt_ids, self._vocabulary, self._device)
            if Penalties.wanted(params)
            else None,
            matcher=None if params.grammar is None else self._grammars.matcher(params.grammar),
        )

    def _check_ids(self, ids: Sequence[int], completion: int) -> None:
        if not ids:
            raise RequestError("the prompt is empty: it needs at least one token", param="prompt")
        if min(ids) < 0 or max(ids) >= self.checkpoint.config.vocab_size:
            raise RequestError(
                f"the prompt has token ids outside 0..{self.checkpoint.config.vocab_size - 1}", param="prompt"
            )
        if len(ids) + completion > self.max_context:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and up to {completion} are to be generated, "
                f"but the context is {self.max_context} tokens: shorten the prompt or lower max_tokens"
            )

    def _forward(self, chunks: list[Chunk]) -> tuple[list[Chunk], Tensor, list[StepOutput]]:
        """The chunks that could be computed, logits [R, vocab] of those that reach an end, and outputs of failures."""
        try:
            return chunks, self._logits(chunks), []
        except LostRankError:
            raise
        except Exception:
            return self._each_alone(chunks)

    def _each_alone(self, chunks: list[Chunk]) -> tuple[list[Chunk], Tensor, list[StepOutput]]:
        """As `_forward`, of a batch whose exception is being handled: each chunk by itself, to find who is at fault."""
        logger.exception("a step of %d requests failed; running each alone", len(chunks))
        computed, logits, failures = [], [torch.empty(0, self._vocabulary, device=self._device)], []
        for chunk in chunks:
            try:
                logits.append(self._logits_alone(chunk).clone())
                computed.append(chunk)
            except Exception as error:
                failures.append(self._fail(chunk.sequence, error))
        return computed, torch.cat(logits), failures

    def _logits_alone(self, chunk: Chunk) -> Tensor:
        """Rows for the sampler of a chunk whose batch failed."""
        self._compute_state(chunk.sequence)
        return self._logits([chunk])

    def _compute_state(self, sequence: SequenceState) -> None:
        """Make a sequence's DeltaNet state what it was before a step that failed.

        Writing the same keys and values to the same places again changes nothing, but the failed step may have moved
        the state on in some layers: it is computed again from the sequence's first token.
        """
        if self._memory.slots is None or sequence.slot is None:
            return
        end, sequence.computed = sequence.computed, 0
        self._memory.slots.state.zero(sequence.slot)
        while sequence.computed < end:
            budget = min(end - sequence.computed, self.config.step_tokens)
            part = Chunk(sequence, self._memory.next_tokens(sequence, budget))
            self._runner.run([part])
            sequence.computed += part.tokens

    def _logits(self, chunks: Sequence[Chunk]) -> Tensor:
        """Rows for the sampler, without the padding of the vocabulary."""
        if self.config.deterministic and len(chunks) > 1:
            rows = torch.cat([self._runner.run([chunk]).clone() for chunk in chunks])[:, : self._vocabulary]
        else:
            rows = self._runner.run(chunks)[:, : self._vocabulary]
        if not any(chunk.sequence.scores_prompt for chunk in chunks):
            return rows
        ends = torch.tensor([len(chunk.logit_rows) for chunk in chunks]).cumsum(0).tolist()
        for chunk, end in zip(chunks, ends, strict=True):
            if chunk.sequence.scores_prompt:
                score_prompt(chunk, rows[end - chunk.tokens : end])
        return rows[[end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.reaches_end]]

    def _extend(self, sequences: Sequence[SequenceState], logits: Tensor) -> list[StepOutput]:
        """Sample a token for each sequence from its row of `logits`."""
        tokens = sample(logits, sequences)
        return [self._accept(*one) for one in zip(sequences, tokens, logits, strict=True)]

    def _accept(self, sequence: SequenceState, token: int | Exception, logits: Tensor | None = None) -> StepOutput:
        """Give a sequence its next token, from its row of `logits` [vocab] where log-probabilities are asked for."""
        try:
            if isinstance(token, Exception):
                raise token
            return self._append(sequence, token, logits)
        except Exception as error:
            return self._fail(sequence, error)

    def _append(self, sequence: SequenceState, token: int, logits: Tensor | None) -> StepOutput:
        params = sequence.request.params
        logprobs: tuple[TokenLogprob, ...] = ()
        if params.logprobs is not None and logits is not None:
            logprobs = (token_logprob(logits, token, params.logprobs),)
        for follower in (sequence.penalties, sequence.matcher):
            if follower is not None:
                follower.accept([token])
        scores = tuple(sequence.scored.values()) if sequence.scores_prompt else ()
        sequence.token_ids.append(token)
        self._generated += 1
        self._release_held(self._requests[sequence.request.request_id])
        is_stop = token in params.stop_token_ids or (not params.ignore_eos and token in self.tokenizer.stop_ids)
        text = "" if is_stop else sequence.text.push([token])
        reason = self._finish_reason(sequence, is_stop)
        if reason is not None:
            text += sequence.text.finish()
            self._end(sequence)
        return StepOutput(
            request_id=sequence.request.request_id,
            token_ids=(token,),
            text=text,
            finish_reason=reason,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached_tokens or 0,
            cache_source=sequence.cache_source,
            logprobs=logprobs,
            index=sequence.index,
            prompt_logprobs=scores,
            stop_string=sequence.text.matched,
        )

    def _finish_reason(self, sequence: SequenceState, is_stop: bool) -> FinishReason | None:
        if is_stop or sequence.text.stopped or (sequence.matcher is not None and sequence.matcher.is_finished):
            return "stop"
        return "length" if sequence.generated >= sequence.request.params.max_tokens else None

    def _end(self, sequence: SequenceState) -> None:
        """Free what one choice holds; the request is forgotten with its last."""
        self._scheduler.remove(sequence)
        choices = self._requests[sequence.request.request_id]
        choices.scheduled.remove(sequence)
        self._release_held(choices)
        if not choices.scheduled:
            del self._requests[sequence.request.request_id]
            self._forget_if_over(sequence.request.session_id)

    def _forget_if_over(self, session_id: str | None) -> int:
        """Tokens forgotten of a conversation that is over and has no request left."""
        live = (choices.scheduled[0].request.session_id for choices in self._requests.values())
        if session_id is None or session_id not in self._over or session_id in live:
            return 0
        self._over.remove(session_id)
        return self._memory.end_session(session_id)

    def _release_held(self, choices: Choices) -> None:
        for sequence in choices.held:
            self._scheduler.add(sequence)
        choices.scheduled += choices.held
        choices.held = []

    def _fail(self, sequence: SequenceState, error: Exception) -> StepOutput:
        """End one choice because of an error that is not the caller's."""
        logger.error("request %s failed: %s", sequence.request.request_id, error, exc_info=error)
        self._end(sequence)
        return StepOutput(
            request_id=sequence.request.request_id,
            text=sequence.text.finish(),
            finish_reason="error",
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached_tokens or 0,
            cache_source=sequence.cache_source,
            error=f"{type(error).__name__}: {error}",
            index=sequence.index,
        )
