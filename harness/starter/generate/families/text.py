"""Work on strings."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_SHORTEN = '''
def $shorten(text: str, $width: int = $default, $mark: str = "$dots") -> str:
    """$doc"""
    if len(text) <= $width:
        return text
    $keep = $width - len($mark)
    if $keep <= 0:
        return $mark[:$width]
    return text[:$keep].rstrip() + $mark


def $middle(text: str, $width: int) -> str:
    """Keep both ends of the text and put ".." between them, $width characters in all."""
    if len(text) <= $width:
        return text
    $tail = ($width - 2) // 2
    $head = $width - 2 - $tail
    return text[:$head] + ".." + text[len(text) - $tail:]
'''


def shorten_text(draw: Draw) -> Module:
    """Texts cut to a width."""
    thing = draw.thing()
    default = draw.number(8, 14)
    dots = draw.pick("...", "..", "~", "+")
    slots = {
        "shorten": draw.glue(("shorten", "cut", "trim", "crop"), (thing.one,), ("text", "title", "name", "line")),
        "middle": draw.glue(("squeeze", "fold", "pinch"), (thing.one,), ("text", "title", "name", "line")),
        "width": draw.pick("width", "size", "room"),
        "mark": draw.pick("mark", "ending", "suffix"),
        "keep": draw.pick("keep", "kept", "left"),
        "head": draw.pick("head", "front"),
        "tail": draw.pick("tail", "back"),
        "default": default,
        "dots": dots,
        "doc": draw.pick(
            f"The text of a {thing.one}, cut so that it fits the width together with the mark.",
            "Shorten the text to the width; what is cut off is shown by the mark.",
        ),
    }
    words = [" ".join(draw.words(3)) for _ in range(4)]
    exact = words[0][:default].strip()
    shorten, middle = slots["shorten"], slots["middle"]
    width, mark = slots["width"], slots["mark"]
    probes = [f"{shorten}('{word}')" for word in words[:2]]
    probes += [f"{shorten}('{exact}', {len(exact)})", f"{shorten}('{words[2]}', {width}={draw.number(5, 9)})"]
    probes += [f"{shorten}('{words[3]}', {draw.number(6, 12)}, {mark}='#')", f"{shorten}('{words[3]}', {len(dots)})"]
    probes += [f"{shorten}('{draw.words(1)[0]}')", f"{shorten}('{words[1]}', 1)"]
    probes += [f"{middle}('{words[0]}', {draw.number(6, 7)})", f"{middle}('{words[1]}', {draw.number(8, 11)})"]
    probes += [f"{middle}('{exact}', {len(exact)})", f"{middle}('{words[2]}', {len(words[2])})"]
    name = draw.pick("shortening", "cutting", "trimming")
    return write_module(draw, name, f"Short texts for {thing.many}.", _SHORTEN, slots, probes)


_RUNS = '''
def $encode(text: str) -> list[tuple[str, int]]:
    """$doc"""
    $runs: list[tuple[str, int]] = []
    for $char in text:
        if $runs and $runs[-1][0] == $char:
            $runs[-1] = ($char, $runs[-1][1] + 1)
        else:
            $runs.append(($char, 1))
    return $runs


def $decode($runs: list[tuple[str, int]]) -> str:
    """The text that has these runs."""
    return "".join($char * count for $char, count in $runs)


def $longest(text: str) -> int:
    """The length of the longest run; 0 for an empty text."""
    return max((count for _, count in $encode(text)), default=0)
'''


def run_lengths(draw: Draw) -> Module:
    """Run-length coding."""
    thing = draw.thing()
    slots = {
        "encode": draw.glue(("pack", "encode", "squash", "group"), (thing.one,), ("runs", "letters", "marks")),
        "decode": draw.glue(("unpack", "decode", "expand", "spread"), (thing.one,), ("runs", "letters", "marks")),
        "longest": draw.glue(("longest", "widest", "largest"), (thing.one,), ("run", "streak", "group")),
        "runs": draw.pick("runs", "groups", "pairs"),
        "char": draw.pick("char", "letter", "sign"),
        "doc": draw.pick(
            "Each letter with how often it follows itself, in the order of the text.",
            "Runs of equal letters as pairs of the letter and the length.",
        ),
    }
    letters = draw.sample("abcdefgh", 4)
    text = "".join(letter * draw.number(1, 3) for letter in letters)
    other = "".join(letter * draw.number(1, 4) for letter in letters[:2]) + letters[0]
    runs = [(letter, draw.number(1, 4)) for letter in letters[:3]]
    probes = [f"{slots['encode']}('{each}')" for each in (text, other, letters[0], "")]
    probes += [f"{slots['decode']}({runs})", f"{slots['decode']}([])", f"{slots['decode']}({runs[:1]})"]
    probes += [f"{slots['longest']}('{each}')" for each in (text, other, "")]
    name = draw.pick("runs", "packing", "coding")
    return write_module(draw, name, f"Runs of letters in {thing.many}.", _RUNS, slots, probes)


FAMILIES: dict[str, Family] = {"shorten_text": shorten_text, "run_lengths": run_lengths}
