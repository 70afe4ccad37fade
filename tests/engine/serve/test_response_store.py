import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import MissingError
from engine.serve.responses.store import Context, ResponseStore, StoredResponse


def put(store: ResponseStore, name: str, size: int = 10, before: Context | None = None) -> Context:
    """Keep a response whose body has `size` bytes and whose one item has the id `name`-item."""
    output = [{"id": f"{name}-item"}]
    context = (before or Context()).extended(output)
    store.keep(name, StoredResponse(b"x" * size, context), output)
    return context


def kept(store: ResponseStore, names: Any) -> set[str]:
    found = set()
    for name in names:
        try:
            store.item(f"{name}-item", "input[0].id")
        except MissingError:
            continue
        found.add(name)
    return found


def test_latest_used_are_kept_by_count() -> None:
    store = ResponseStore(max_count=2)
    put(store, "a")
    put(store, "b")
    store.get("a")
    put(store, "c")
    assert kept(store, "abc") == {"a", "c"}
    with pytest.raises(MissingError, match=r"^previous_response_id: response 'b' is not kept here") as caught:
        store.get("b", "previous_response_id")
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "response_not_found")


def test_conversation_counts_in_each_of_its_responses() -> None:
    store = ResponseStore()
    first = put(store, "a", 100)
    second = put(store, "b", 100, first)
    assert second.items == ({"id": "a-item"}, {"id": "b-item"})
    one = len(json.dumps([{"id": "a-item"}]))
    assert (first.bytes, second.bytes, store.bytes) == (one, 2 * one, 200 + 3 * one)
    store.delete("a")
    assert store.bytes == 100 + 2 * one
    assert store.get("b").context.items == second.items
    with pytest.raises(MissingError):
        store.delete("a")


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 400), st.booleans()), max_size=40))
def test_bounds_hold_whatever_is_kept_and_deleted(steps: list[tuple[str, int, bool]]) -> None:
    store = ResponseStore(max_count=4, max_bytes=1000)
    alive: Mapping[str, int] = {}
    for number, (letter, size, is_deleted) in enumerate(steps):
        name = f"{letter}{number}"
        put(store, name, size)
        alive = {**alive, name: size}
        if is_deleted and name in kept(store, [name]):
            store.delete(name)
        found = kept(store, alive)
        assert len(found) == len(store) <= 4
        assert store.bytes == sum(store.get(each).bytes for each in found) <= 1000
