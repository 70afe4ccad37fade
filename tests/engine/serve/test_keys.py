from pathlib import Path

import pytest

from engine.errors import UserError
from engine.serve.keys import collect_keys


def test_keys_of_file_and_command_line_come_together(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the laptops\nfirst\n\n  second  \n#third\n")
    assert collect_keys(["given"], file) == ("given", "first", "second")
    assert collect_keys([]) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nothing\n", "holds no key"),
        ("good\ntwo words\n", "line 2: a key must be printable ASCII"),
        ("schlüssel", "line 1: a key must be printable ASCII"),
    ],
)
def test_a_file_without_usable_keys_is_one_error(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        collect_keys([], file)


def test_no_server_is_open_by_an_empty_key_or_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--api-key: a key must be printable ASCII without spaces, and not empty$"):
        collect_keys([""])
    with pytest.raises(UserError, match="No such file or directory; give a file with a key per line"):
        collect_keys([], tmp_path / "absent")
