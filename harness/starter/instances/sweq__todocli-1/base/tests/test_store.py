import json

import pytest

from todocli.store import NoSuchItem, Store


def test_missing_file_is_an_empty_list(tmp_path):
    assert Store.load(tmp_path / "none.json").items() == []


def test_round_trip(tmp_path):
    path = tmp_path / "todo.json"
    store = Store()
    store.add("one", ["b", "a", "b"])
    store.add("two", [])
    store.item(2).done = True
    store.save(path)
    assert Store.load(path).items() == store.items()
    assert Store.load(path).item(1).tags == ["a", "b"]


def test_file_format(tmp_path):
    path = tmp_path / "todo.json"
    store = Store()
    store.add("one", [])
    store.save(path)
    assert json.loads(path.read_text())["items"] == [{"number": 1, "text": "one", "done": False, "tags": []}]
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_item():
    with pytest.raises(NoSuchItem, match="no item 3"):
        Store().item(3)
