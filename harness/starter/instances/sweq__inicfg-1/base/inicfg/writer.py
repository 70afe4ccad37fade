"""Writing configuration."""

from collections.abc import Mapping

from inicfg.values import Value


def dumps(sections: Mapping[str, Mapping[str, Value | list[Value]]]) -> str:
    """The text that `loads` reads back as `sections`. Text is always quoted."""
    blocks = []
    for name, section in sections.items():
        lines = [f"[{name}]"] if name else []
        lines += [f"{key} = {_format(value)}" for key, value in section.items()]
        if lines:
            blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _format(value: Value | list[Value]) -> str:
    if isinstance(value, list):
        return ", ".join(_format(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    return repr(value)
