import pytest

from slugtext import slugify, unique_slug


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("Hello, World!", "hello-world"),
        ("  spaces   everywhere ", "spaces-everywhere"),
        ("Crème brûlée", "creme-brulee"),
        ("Straße 12", "strasse-12"),
        ("Don't panic", "dont-panic"),
        ("!!!", ""),
    ],
    ids=["punctuation", "spaces", "accents", "sharp-s", "apostrophe", "nothing"],
)
def test_slugify(text, slug):
    assert slugify(text) == slug


def test_other_separator():
    assert slugify("Release notes 3.0", separator="_") == "release_notes_3_0"


def test_max_length_cuts():
    assert slugify("internationalization", max_length=5) == "inter"


def test_max_length_must_be_positive():
    with pytest.raises(ValueError, match="max_length"):
        slugify("text", max_length=0)


def test_unique_slug_counts_up():
    taken = {"news", "news-2"}
    assert unique_slug("News", taken) == "news-3"
    assert unique_slug("Other", taken) == "other"
