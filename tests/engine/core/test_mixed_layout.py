"""A mixed step's numbers, read back from the buffer and compared with the chunks they came from."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.mixed_layout import RUNS, Layout, fill
from engine.core.request import Request, SamplingParams
from engine.core.sequence import Chunk, SequenceState
from engine.core.text_stream import TextStream

LAYOUT = Layout(singles=4, tokens=192, max_blocks=16)
SIZE = 16


def chunk_of(number: int, start: int, tokens: int, pending: int, **params: int) -> Chunk:
    """The next `tokens` of a sequence that has `pending`, after `start` computed ones."""
    ids = [number * 1000 + at for at in range(start + pending)]
    text = TextStream(None, ())  # type: ignore[arg-type]
    sequence = SequenceState(Request("r", tuple(ids), SamplingParams(**params)), ids, Random(0), text)
    sequence.blocks = [100 * (number + 1) + at for at in range(-(-len(ids) // SIZE))]
    sequence.slot, sequence.computed = number, start
    return Chunk(sequence, tokens)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60), st.integers(0, 2)), max_size=6))
def test_what_is_read_is_what_was_written(shapes: list[tuple[int, int, int]]) -> None:
    chunks = [chunk_of(i, start, tokens, tokens + more) for i, (start, tokens, more) in enumerate(shapes)]
    runs = [chunk for chunk in chunks if chunk.tokens > 1]
    singles = [chunk for chunk in chunks if chunk.tokens == 1]
    fits = 0 < len(runs) <= RUNS and len(singles) <= 4 and sum(chunk.tokens for chunk in runs) <= 192
    assert LAYOUT.holds(chunks) == fits
    if not fits:
        return
    buffer = np.full(LAYOUT.length, 7, dtype=np.int32)
    used = fill(buffer, LAYOUT, chunks, SIZE)
    fields, width = LAYOUT.views(buffer), int(buffer[0])
    tables = buffer[LAYOUT.header : used].reshape(-1, width)
    rows = np.concatenate((fields["singles"][:3], fields["rows"]), axis=1)
    places = [at for chunk in singles + runs for at in range(chunk.start, chunk.start + chunk.tokens)]
    live = [*range(len(singles)), *range(4, 4 + sum(chunk.tokens for chunk in runs))]
    assert rows[0, live].tolist() == [token for chunk in singles + runs for token in chunk.token_ids]
    assert rows[1, live].tolist() == places
    assert (rows[2, [row for row in range(rows.shape[1]) if row not in live]] == -1).all()
    for number, (first, tokens, context, table) in enumerate(fields["contexts"][: len(runs)].tolist()):
        own = runs[number].sequence.blocks
        assert (tokens, context) == (runs[number].tokens, runs[number].start + runs[number].tokens)
        assert tables[table, : len(own)].tolist() == own
        slots = [own[at // SIZE] * SIZE + at % SIZE for at in range(context - tokens, context)]
        assert rows[2, first : first + tokens].tolist() == slots
    assert fields["chunks"][:, 1].sum() == fields["runs"][:, 1].sum() == sum(chunk.tokens for chunk in runs)
    ends = [chunk.token_ids[-1] for chunk in chunks if chunk.reaches_end]
    assert rows[0, fields["logit_rows"][: len(ends)]].tolist() == ends


@pytest.mark.parametrize("tokens", [1, 30])
def test_scored_prompts_want_more_rows_than_there_are(tokens: int) -> None:
    assert not LAYOUT.holds([chunk_of(0, 0, 20, 20), chunk_of(1, 0, tokens, tokens, prompt_logprobs=1)])
