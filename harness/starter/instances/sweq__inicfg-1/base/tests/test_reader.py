import pytest

from inicfg import ConfigError, load, loads


def test_types():
    text = 'a = 1\nb = 2.5\nc = yes\nd = False\ne = plain words\nf = "quoted"\n'
    assert loads(text)[""] == {"a": 1, "b": 2.5, "c": True, "d": False, "e": "plain words", "f": "quoted"}


def test_sections():
    assert loads("x = 1\n[one]\nx = 2\n[ two ]\n") == {"": {"x": 1}, "one": {"x": 2}, "two": {}}


def test_lists():
    assert loads('a = 1, two, "3, 4"\n')[""]["a"] == [1, "two", "3, 4"]


def test_comments():
    text = "# whole line\n; another\n[s] # after a header\na = 1 # after a value\nb = word ; and this\n"
    assert loads(text)["s"] == {"a": 1, "b": "word"}


def test_escapes():
    assert loads(r'a = "tab\tquote\" backslash\\"')[""]["a"] == 'tab\tquote" backslash\\'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nnonsense\n", "line 2: expected 'key = value'"),
        ("[open\n", "line 1: not a section header"),
        ("a = 1\na = 2\n", "line 2: key 'a' given twice"),
        ("[a]\n[a]\n", "line 2: section 'a' given twice"),
        ('a = "open\n', "line 1: a: closing quote is missing"),
    ],
    ids=["no-entry", "open-header", "key-twice", "section-twice", "open-quote"],
)
def test_errors_name_the_line(text, message):
    with pytest.raises(ConfigError) as caught:
        loads(text)
    assert str(caught.value).startswith(message)


def test_load_reads_a_file(tmp_path):
    path = tmp_path / "app.ini"
    path.write_text("name = Zoë\n", encoding="utf-8")
    assert load(path) == {"": {"name": "Zoë"}}
