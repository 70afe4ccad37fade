import pytest

from slugtext import excerpt, wrap


def test_short_text_is_kept():
    assert excerpt("Two words", 20) == "Two words"


def test_excerpt_cuts_between_words():
    assert excerpt("The quick brown fox jumps", 16) == "The quick brown…"


def test_excerpt_of_one_long_word():
    assert excerpt("Donaudampfschifffahrt", 8) == "Donauda…"


def test_wrap():
    assert wrap("one two three four", 9) == ["one two", "three", "four"]


def test_wrap_with_indent():
    assert wrap("one two three", 9, indent="> ") == ["> one two", "> three"]


def test_wrap_cuts_long_words():
    assert wrap("a abcdefgh b", 3) == ["a", "abc", "def", "gh", "b"]


def test_wrap_needs_room():
    with pytest.raises(ValueError, match="width"):
        wrap("text", 2, indent="> ")
