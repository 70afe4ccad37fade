"""Small classes that hold things."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, steps, write_module

_STACK = '''
class $Full(Exception):
    """There is no room for another $one."""


class $Stack:
    """$doc"""

    def __init__(self, $limit: int = $default) -> None:
        self.$limit = $limit
        self._$many: list[str] = []

    def $push(self, $one: str) -> int:
        """Put a $one on top; returns how many there are now."""
        if len(self._$many) >= self.$limit:
            raise $Full(f"only {self.$limit} $many fit")
        self._$many.append($one)
        return len(self._$many)

    def $pop(self) -> str:
        """Take the top $one away and return it; raises IndexError if there is none."""
        if not self._$many:
            raise IndexError("no $many")
        return self._$many.pop()

    def $peek(self) -> str | None:
        """The top $one, or None."""
        return self._$many[-1] if self._$many else None

    def $room(self) -> int:
        """How many more $many fit."""
        return self.$limit - len(self._$many)
'''


def bounded_stack(draw: Draw) -> Module:
    """A stack with a limit."""
    thing = draw.thing()
    Stack = draw.camel((thing.one,), ("stack", "pile", "tray", "heap"))
    push = draw.pick("push", "put", "add", "place")
    pop = draw.pick("pop", "take", "remove")
    peek = draw.pick("peek", "top", "look")
    room = draw.pick("room", "free", "space_left")
    default = draw.number(2, 4)
    slots = {
        "Full": draw.camel((thing.one,), ("limit", "stack", "pile"), ("error", "reached", "exceeded")),
        "Stack": Stack,
        "one": thing.one,
        "many": thing.many,
        "limit": draw.pick("limit", "size", "capacity"),
        "default": default,
        "push": push,
        "pop": pop,
        "peek": peek,
        "room": room,
        "doc": draw.pick(
            f"A pile of {thing.many}; the last one in is the first one out.",
            f"At most a fixed number of {thing.many}, taken from the top.",
        ),
    }
    words = draw.words(6)
    var = draw.pick("pile", "stack", "box")
    new = f"{var} = {Stack}()"
    one, two = f"{var}.{push}('{words[0]}')", f"{var}.{push}('{words[1]}')"
    fill = [f"{var}.{push}('{word}')" for word in words[:default]]
    sized = f"{var} = {Stack}({default + 2})"
    probes = [
        steps(new, call=one),
        steps(new, one, call=two),
        steps(new, one, two, call=f"{var}.{pop}()"),
        steps(new, one, two, f"{var}.{pop}()", call=f"{var}.{pop}()"),
        steps(new, call=f"{var}.{pop}()"),
        steps(new, one, two, call=f"{var}.{peek}()"),
        steps(new, call=f"{var}.{peek}()"),
        steps(new, call=f"{var}.{room}()"),
        steps(new, one, two, call=f"{var}.{room}()"),
        steps(new, *fill, call=f"{var}.{push}('{words[5]}')"),
        steps(sized, *fill, call=f"{var}.{push}('{words[5]}')"),
        steps(new, one, f"{var}.{pop}()", call=f"{var}.{room}()"),
    ]
    name = draw.pick("stack", "pile", "trays")
    return write_module(draw, name, f"A stack of {thing.many}.", _STACK, slots, probes)


FAMILIES: dict[str, Family] = {"bounded_stack": bounded_stack}
