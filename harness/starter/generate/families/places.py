"""More families that training never sees: grids, seats, votes, templates."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, steps, write_module

_GRID = '''
def $near(grid: list[str], row: int, column: int) -> int:
    """$doc"""
    count = 0
    for y in range(max(row - 1, 0), min(row + 2, len(grid))):
        for x in range(max(column - 1, 0), min(column + 2, len(grid[y]))):
            if (y, x) != (row, column) and grid[y][x] == "$full":
                count += 1
    return count


def $flip(grid: list[str]) -> list[str]:
    """The grid with rows and columns exchanged."""
    return ["".join(cells) for cells in zip(*grid)]


def $turn(grid: list[str]) -> list[str]:
    """The grid turned to the right by a quarter."""
    return [cells[::-1] for cells in $flip(grid)]
'''


def grid_neighbours(draw: Draw) -> Module:
    """Fields on a board."""
    thing = draw.thing()
    full = draw.pick("#", "x", "o")
    slots = {
        "near": draw.glue((thing.one,), ("near", "neighbours", "around")),
        "flip": draw.glue(("flip", "transpose", "swap"), (thing.one,), ("grid", "board")),
        "turn": draw.glue(("turn", "rotate", "spin"), (thing.one,), ("grid", "board")),
        "full": full,
        "doc": draw.pick(
            f"How many {thing.many} lie around a field, those at the corners included.",
            "The number of full fields among the up to eight neighbours.",
        ),
    }
    grid = ["".join(draw.pick(full, full, ".") for _ in range(4)) for _ in range(3)]
    letters = ["abc", "def"]
    probes = [f"$near({grid}, {row}, {column})" for row, column in ((0, 0), (1, 1), (2, 3), (1, 3), (0, 2), (2, 0))]
    probes += [f"$near({[full]}, 0, 0)", f"$flip({letters})", f"$flip({grid})", "$flip([])", f"$turn({letters})"]
    probes += [f"$turn({grid})", "$turn(['ab'])"]
    return write_module(draw, draw.pick("board", "grid"), f"A board of {thing.many}.", _GRID, slots, probes)


_SEATS = '''
class $Plan:
    """$doc"""

    def __init__(self, rows: int, width: int) -> None:
        self.rows = rows
        self.width = width
        self._taken: dict[tuple[int, int], str] = {}

    def $book(self, row: int, place: int, name: str) -> str:
        """Give a seat to somebody; rows and places are counted from 1. Returns the seat's label."""
        if not (1 <= row <= self.rows and 1 <= place <= self.width):
            raise IndexError("no such seat")
        if (row, place) in self._taken:
            raise ValueError("taken")
        self._taken[row, place] = name
        return f"{row}{chr(64 + place)}"

    def $free(self, row: int) -> list[int]:
        """The places of a row that are free."""
        return [place for place in range(1, self.width + 1) if (row, place) not in self._taken]

    def $share(self) -> int:
        """The percentage of all seats that are taken, rounded down."""
        return len(self._taken) * 100 // (self.rows * self.width)
'''


def seat_plan(draw: Draw) -> Module:
    """Seats in rows."""
    thing = draw.thing()
    slots = {
        "Plan": draw.camel((thing.one,), ("plan", "seats", "hall", "cabin")),
        "book": draw.pick("book", "reserve", "assign"),
        "free": draw.glue(("free", "open", "empty"), (thing.one, "row"), ("seats", "places")),
        "share": draw.pick("share", "occupancy", "load"),
        "doc": draw.pick(f"The seats for a {thing.one}.", f"A plan of seats, row by row, for {thing.many}."),
    }
    var = draw.pick("plan", "hall")
    rows, width = draw.number(2, 5), draw.number(3, 5)
    a, b = draw.words(2)
    new = f"{var} = $Plan({rows}, {width})"
    one, two = f"{var}.$book(1, 2, '{a}')", f"{var}.$book({rows}, {width}, '{b}')"
    probes = [
        steps(new, call=one),
        steps(new, call=two),
        steps(new, one, call=f"{var}.$book(1, 2, '{b}')"),
        steps(new, call=f"{var}.$book(0, 1, '{a}')"),
        steps(new, call=f"{var}.$book(1, {width + 1}, '{a}')"),
        steps(new, call=f"{var}.$book({rows + 1}, 1, '{a}')"),
        steps(new, one, call=f"{var}.$free(1)"),
        steps(new, one, call=f"{var}.$free(2)"),
        steps(new, two, call=f"{var}.$free({rows})"),
        steps(new, one, two, call=f"{var}.$share()"),
        steps(new, call=f"{var}.$share()"),
    ]
    return write_module(draw, draw.pick("seats", "hall"), f"Seats for {thing.many}.", _SEATS, slots, probes)


_VOTES = '''
def $count(votes: list[str]) -> dict[str, int]:
    """How many votes each name has; empty votes do not count."""
    result: dict[str, int] = {}
    for vote in votes:
        name = vote.strip()
        if not name:
            continue
        result[name] = result.get(name, 0) + 1
    return result


def $winner(votes: list[str]) -> str | None:
    """$doc"""
    counts = $count(votes)
    for name, number in counts.items():
        if number * 2 > sum(counts.values()):
            return name
    return None


def $share(votes: list[str], name: str) -> int:
    """The percentage of the votes that a name has, rounded down; 0 without votes."""
    counts = $count(votes)
    if not counts:
        return 0
    return counts.get(name, 0) * 100 // sum(counts.values())
'''


def vote_count(draw: Draw) -> Module:
    """Elections."""
    thing = draw.thing()
    slots = {
        "count": draw.glue(("count", "tally", "sum_up"), (thing.one,), ("votes", "ballots")),
        "winner": draw.glue((thing.one,), ("winner", "choice", "majority")),
        "share": draw.glue((thing.one,), ("share", "percent", "support")),
        "doc": draw.pick(
            "The name with more than half of the votes, or None.",
            f"Which {thing.one} has the absolute majority; None if there is none.",
        ),
    }
    a, b, c = draw.words(3)
    lists: tuple[list[str], ...] = ([a, b, a], [a, b], [b, "", f" {b} ", c], [], [a, b, c, a], ["", c])
    probes = [f"$count({votes})" for votes in lists[:4]] + [f"$winner({votes})" for votes in lists]
    probes += [f"$share({lists[0]}, '{a}')", f"$share({lists[1]}, '{c}')", f"$share([], '{a}')"]
    probes += [f"$share({lists[2]}, '{b}')"]
    return write_module(draw, draw.pick("votes", "ballots"), f"Votes on {thing.many}.", _VOTES, slots, probes)


_TEMPLATE = '''
def $fill(text: str, names: dict[str, str], $missing: str = "$default") -> str:
    """$doc"""
    result = ""
    while "<" in text:
        before, _, rest = text.partition("<")
        key, end, text = rest.partition(">")
        if not end:
            raise ValueError("a sign > is missing")
        result += before + names.get(key.strip(), $missing)
    return result + text


def $keys(text: str) -> list[str]:
    """The keys that a text asks for, in order and once each."""
    keys: list[str] = []
    for piece in text.split("<")[1:]:
        key = piece.partition(">")[0].strip()
        if key not in keys:
            keys.append(key)
    return keys
'''


def fill_template(draw: Draw) -> Module:
    """Texts with gaps."""
    thing = draw.thing()
    slots = {
        "fill": draw.glue(("fill", "render", "complete"), (thing.one,), ("text", "letter", "form")),
        "keys": draw.glue((thing.one,), ("keys", "gaps", "fields")),
        "missing": draw.pick("missing", "blank", "otherwise"),
        "default": draw.pick("?", "...", "none"),
        "doc": draw.pick(
            f"The text about a {thing.one} with the keys in angle brackets replaced.",
            "Put names into the gaps of a text; a name that is not known leaves a mark.",
        ),
    }
    a, b, c = draw.words(3)
    names = {a: b, c: a}
    texts = (f"dear <{a}>", f"<{a}> and <{c}>", f"<{b}>, you", f"{a} only", f"open <{a}", f"< {c} >", "")
    probes = [f"$fill('{text}', {names})" for text in texts]
    probes += [f"$fill('<{b}>', {names}, '-')", f"$fill('x <{b}>', {{}}, $missing='{c}')"]
    probes += [f"$keys('{text}')" for text in (f"<{a}> <{b}> <{a}>", a, f"< {c} > or <{a}>", "")]
    return write_module(draw, draw.pick("templates", "letters"), f"Texts about {thing.many}.", _TEMPLATE, slots, probes)


FAMILIES: dict[str, Family] = {
    "grid_neighbours": grid_neighbours,
    "seat_plan": seat_plan,
    "vote_count": vote_count,
    "fill_template": fill_template,
}
