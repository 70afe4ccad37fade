from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import engine.serve.app
from engine.__main__ import app
from engine.errors import UserError
from engine.serve.guard.keys import collect_keys


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


def test_the_command_takes_keys_origins_and_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(engine.serve.app, "serve", lambda *_, **options: taken.update(options))
    (tmp_path / "keys").write_text("third\n")
    call = ["serve", "--model", "m", "--api-key-file", str(tmp_path / "keys"), "--cors-origin", "https://a.example"]
    call += ["--max-waiting", "7", "--max-body", "0.5", "--device", "cpu"]
    CliRunner().invoke(app, call, env={"SWEQ_API_KEY": "first second"}, catch_exceptions=False)
    assert taken["api_keys"] == ("first", "second", "third")
    assert (taken["cors_origins"], taken["max_waiting"], taken["max_body"]) == (("https://a.example",), 7, 1 << 19)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-waiting", "-1", "--max-waiting -1: give a number of requests, 0 or more"),
        ("--max-body", "0", "--max-body 0.0: give MiB, more than 0"),
        ("--max-body", "nan", "--max-body nan: give MiB, more than 0"),
        ("--api-key", "", "--api-key: a key must be printable ASCII"),
    ],
)
def test_an_option_out_of_range_is_one_line(option: str, value: str, message: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--model", "m", option, value])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(message)
