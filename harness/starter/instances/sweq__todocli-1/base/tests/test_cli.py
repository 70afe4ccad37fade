import pytest

from todocli.cli import main


@pytest.fixture
def todo(tmp_path, capsys):
    """Runs one command on a list of its own; returns exit status, output and error output."""

    def run(*arguments):
        status = main(["--file", str(tmp_path / "todo.json"), *arguments])
        return status, *capsys.readouterr()

    return run


def test_add_prints_the_number(todo):
    assert todo("add", "water the plants") == (0, "1\n", "")
    assert todo("add", "call Ann") == (0, "2\n", "")


def test_list(todo):
    todo("add", "water the plants", "--tag", "home", "--tag", "green")
    todo("add", "call Ann")
    todo("done", "2")
    assert todo("list")[1] == "1  [ ] water the plants  #green  #home\n2  [x] call Ann\n"


def test_list_filters(todo):
    for text, tag in [("one", "a"), ("two", "b"), ("three", "a")]:
        todo("add", text, "--tag", tag)
    todo("done", "3")
    assert todo("list", "--tag", "a", "--open")[1] == "1  [ ] one  #a\n"
    assert todo("list", "--done")[1] == "3  [x] three  #a\n"


def test_remove(todo):
    todo("add", "one")
    todo("add", "two")
    assert todo("remove", "1") == (0, "", "")
    assert todo("list")[1] == "2  [ ] two\n"


def test_unknown_item_cannot_be_done(todo):
    todo("add", "one")
    assert todo("done", "1", "7") == (1, "", "todo: no item 7\n")
    assert todo("list")[1] == "1  [ ] one\n"


def test_wrong_usage(todo):
    with pytest.raises(SystemExit) as caught:
        todo("done")
    assert caught.value.code == 2
