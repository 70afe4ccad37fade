"""Sizes as people write them: 40G, 512MiB."""

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?)B?|B)?", re.IGNORECASE)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: object) -> int:
    """Bytes of a size such as `40G` or `40GB` (10^9 each), `512MiB` (2^20 each) or a plain number of bytes.

    Raises `ValueError` for anything else, and for nothing at all.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if isinstance(text, bool) or match is None:
        raise ValueError("expected a size such as 40G or 512MiB")
    number, unit, binary = match.groups()
    size = int(float(number) * (1024 if binary else 1000) ** _POWERS.get((unit or "").upper(), 0))
    if size <= 0:
        raise ValueError("expected a size above zero, such as 40G or 512MiB")
    return size


def format_size(size: float) -> str:
    """`size` bytes to three digits in decimal units, as Docker prints them: `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 999.5 else f"{size:.0f} TB"
