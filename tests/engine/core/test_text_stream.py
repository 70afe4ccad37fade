from hypothesis import given
from hypothesis import strategies as st

from engine.core.text_stream import TextStream
from engine.weights.loader import Checkpoint


def pushed(checkpoint: Checkpoint, text: str, stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """What each token of `text` and the end release, up to a stop."""
    stream = TextStream(checkpoint.tokenizer.detokenizer(), stop)
    parts = []
    for token in checkpoint.tokenizer.encode(text):
        parts.append(stream.push([token]))
        if stream.stopped:
            break
    return [*parts, stream.finish()], stream.stopped


def test_text_that_may_become_a_stop_string_is_held_back(checkpoint: Checkpoint) -> None:
    assert pushed(checkpoint, "a<en<end>b", ("<end>",)) == (["a", "", "", "", "<en", "", "", "", "", ""], True)
    assert pushed(checkpoint, "ab<en", ("<end>",)) == (["a", "b", "", "", "", "<en"], False)


@given(
    text=st.text(alphabet="abñ🙂", max_size=20),
    stop=st.lists(st.text(alphabet="abñ🙂", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_pieces_concatenate_to_the_text_before_the_first_stop(checkpoint, text: str, stop: tuple[str, ...]) -> None:
    parts, stopped = pushed(checkpoint, text, stop)
    released = "".join(parts)
    hit = [prefix for prefix in (text[:n] for n in range(len(text) + 1)) if any(prefix.endswith(s) for s in stop)]
    assert stopped == bool(hit)
    if not hit:
        assert released == text
    else:
        earliest = min(hit[0].find(s) for s in stop if s in hit[0])
        assert released == text[:earliest]


def test_the_stop_string_that_came_first_is_named(checkpoint: Checkpoint) -> None:
    for text, stop, matched in (("xxab", ("b", "ab"), "ab"), ("abc", ("abc", "b"), "b"), ("abc", ("d",), None)):
        stream = TextStream(checkpoint.tokenizer.detokenizer(), stop)
        for token in checkpoint.tokenizer.encode(text):
            stream.push([token])
            if stream.stopped:
                break
        assert stream.matched == matched
