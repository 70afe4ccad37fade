"""Values: text, numbers, truth values, and lists of them."""

Value = str | int | float | bool
_WORDS = {"yes": True, "true": True, "no": False, "false": False}
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


def parse_value(text: str) -> Value | list[Value]:
    """The value written as `text`; a list when it holds commas outside quotes. Raises `ValueError`."""
    parts = split_list(text)
    return parse_scalar(parts[0]) if len(parts) == 1 else [parse_scalar(part) for part in parts]


def split_list(text: str) -> list[str]:
    """`text` cut at the commas that stand outside quotes."""
    parts, current, quoted, escaped = [], "", False, False
    for character in text:
        if character == "," and not quoted:
            parts.append(current)
            current = ""
            continue
        if character == '"' and not escaped:
            quoted = not quoted
        escaped = character == "\\" and not escaped
        current += character
    return [*parts, current]


def parse_scalar(text: str) -> Value:
    """One value: quoted text, a truth word, a number, or else the text itself. Raises `ValueError`."""
    text = text.strip()
    if text.startswith('"'):
        return unquote(text)
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def unquote(text: str) -> str:
    """The text inside the quotes, with its escapes resolved. Raises `ValueError`."""
    result, characters = "", iter(text[1:])
    for character in characters:
        if character == '"':
            if rest := "".join(characters):
                raise ValueError(f"unexpected {rest!r} after the closing quote")
            return result
        if character == "\\":
            code = next(characters, "")
            if code not in _ESCAPES:
                raise ValueError(f"unknown escape '\\{code}'")
            character = _ESCAPES[code]
        result += character
    raise ValueError("closing quote is missing")
