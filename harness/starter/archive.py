"""The generated set `starter-500`, committed as one compressed file of dataset rows."""

import json
import lzma
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import replace_file

STARTER_500 = "starter-500"
ARCHIVE = Path(__file__).parent / f"{STARTER_500}.jsonl.xz"


@lru_cache(maxsize=1)
def load_archive(path: Path = ARCHIVE) -> list[dict[str, Any]]:
    """The rows of the file, in its order: official columns, `tree` (text by path), `part`, `family` and `kind`.

    Raises `UserError` where the file is missing or damaged.
    """
    try:
        text = lzma.decompress(path.read_bytes()).decode("utf-8")
        return [json.loads(line) for line in text.splitlines()]
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as rows of {STARTER_500}: {error}") from error


def pack_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The file's bytes; the same rows always give the same text inside."""
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    return lzma.compress(text.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)


def write_archive(rows: Iterable[Mapping[str, Any]], path: Path = ARCHIVE) -> None:
    """Replace the file in one step."""
    replace_file(path, pack_rows(rows))
