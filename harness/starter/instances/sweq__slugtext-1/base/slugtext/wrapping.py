"""Previews and plain-text mails."""


def excerpt(text: str, limit: int, ellipsis: str = "…") -> str:
    """The first words of `text`, at most `limit` characters with the ellipsis that marks the cut."""
    words = text.split()
    whole = " ".join(words)
    if len(whole) <= limit:
        return whole
    kept = ""
    for word in words:
        longer = f"{kept} {word}" if kept else word
        if len(longer) + len(ellipsis) > limit:
            break
        kept = longer
    return (kept or whole[: limit - len(ellipsis)]) + ellipsis


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width` characters, each beginning with `indent`; words longer than a line are cut."""
    room = width - len(indent)
    if room < 1:
        raise ValueError("width must be larger than the indent")
    lines: list[str] = []
    line = ""
    for word in text.split():
        while len(word) > room:
            if line:
                lines.append(line)
                line = ""
            lines.append(word[:room])
            word = word[room:]
        if not word:
            continue
        if not line:
            line = word
        elif len(line) + 1 + len(word) <= room:
            line = f"{line} {word}"
        else:
            lines.append(line)
            line = word
    if line:
        lines.append(line)
    return [indent + line for line in lines]
