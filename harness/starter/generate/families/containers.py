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


_HISTORY = '''
class $History:
    """$doc"""

    def __init__(self, $state: str = "$empty") -> None:
        self.$state = $state
        self._past: list[str] = []
        self._future: list[str] = []

    def $change(self, $state: str) -> str:
        """Set a new text; what was undone before cannot be redone any more."""
        if $state == self.$state:
            return self.$state
        self._past.append(self.$state)
        self._future.clear()
        self.$state = $state
        return self.$state

    def $undo(self) -> str:
        """Go back to the text before; the first one stays."""
        if self._past:
            self._future.append(self.$state)
            self.$state = self._past.pop()
        return self.$state

    def $redo(self) -> str:
        """Take the last undo back, if there was one."""
        if self._future:
            self._past.append(self.$state)
            self.$state = self._future.pop()
        return self.$state
'''


def undo_history(draw: Draw) -> Module:
    """Undo and redo."""
    thing = draw.thing()
    slots = {
        "History": draw.camel((thing.one,), ("history", "editor", "journal", "draft")),
        "state": draw.pick("state", "text", "current"),
        "empty": draw.pick("new", "empty", "blank"),
        "change": draw.pick("change", "set", "edit"),
        "undo": draw.pick("undo", "back"),
        "redo": draw.pick("redo", "forward"),
        "doc": draw.pick(f"The text of a {thing.one} with undo and redo.", f"A {thing.one} that remembers its texts."),
    }
    var = draw.pick("draft", "history", "paper")
    a, b, c = draw.words(3)
    new = f"{var} = $History('{a}')"
    one, two = f"{var}.$change('{b}')", f"{var}.$change('{c}')"
    undo, redo = f"{var}.$undo()", f"{var}.$redo()"
    probes = [
        steps(new, call=one),
        steps(new, one, call=undo),
        steps(new, one, two, call=undo),
        steps(new, one, two, undo, call=undo),
        steps(new, call=undo),
        steps(new, one, undo, call=redo),
        steps(new, one, two, undo, undo, call=redo),
        steps(new, one, undo, two, call=redo),
        steps(new, one, undo, redo, call=undo),
        steps(new, one, one, call=undo),
        steps(new, one, undo, undo, redo, call=redo),
        steps(f"{var} = $History()", one, call=undo),
        steps(f"{var} = $History()", call=redo),
    ]
    name = draw.pick("history", "undoing", "drafts")
    return write_module(draw, name, f"Changes of a {thing.one}.", _HISTORY, slots, probes)


_INDEX = '''
class $Index:
    """$doc"""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def $add(self, key: str, name: str) -> bool:
        """Put a name under a key; False if it was there already."""
        names = self._names.setdefault(key, [])
        if name in names:
            return False
        names.append(name)
        return True

    def $remove(self, key: str, name: str) -> None:
        """Take a name away; raises KeyError if it is not there. Keys without names go."""
        if name not in self._names.get(key, []):
            raise KeyError(name)
        self._names[key].remove(name)
        if not self._names[key]:
            del self._names[key]

    def $keys(self, name: str) -> list[str]:
        """The keys that have this name, sorted."""
        return sorted(key for key, names in self._names.items() if name in names)

    def $size(self) -> int:
        """How many keys there are."""
        return len(self._names)
'''


def group_index(draw: Draw) -> Module:
    """Names under keys."""
    thing = draw.thing()
    slots = {
        "Index": draw.camel((thing.one,), ("index", "groups", "catalog", "register")),
        "add": draw.pick("add", "file", "assign"),
        "remove": draw.pick("remove", "discard", "withdraw"),
        "keys": draw.glue((thing.one,), ("keys", "groups", "places")),
        "size": draw.pick("size", "count"),
        "doc": draw.pick(f"Which names belong to which {thing.one}.", f"An index of names by {thing.one}."),
    }
    var = draw.pick("index", "groups", "book")
    k, m = draw.sample(["red", "blue", "green", "black", "white"], 2)
    a, b = draw.words(2)
    new = f"{var} = $Index()"
    one, two, three = f"{var}.$add('{k}', '{a}')", f"{var}.$add('{m}', '{a}')", f"{var}.$add('{k}', '{b}')"
    probes = [
        steps(new, call=one),
        steps(new, one, call=one),
        steps(new, one, call=two),
        steps(new, two, one, call=f"{var}.$keys('{a}')"),
        steps(new, one, two, three, call=f"{var}.$keys('{b}')"),
        steps(new, one, call=f"{var}.$keys('{b}')"),
        steps(new, one, two, call=f"{var}.$size()"),
        steps(new, one, three, call=f"{var}.$size()"),
        steps(new, one, three, f"{var}.$remove('{k}', '{a}')", call=f"{var}.$keys('{a}')"),
        steps(new, one, two, f"{var}.$remove('{k}', '{a}')", call=f"{var}.$size()"),
        steps(new, one, three, f"{var}.$remove('{k}', '{b}')", call=f"{var}.$size()"),
        steps(new, one, call=f"{var}.$remove('{k}', '{b}')"),
        steps(new, call=f"{var}.$remove('{k}', '{b}')"),
    ]
    name = draw.pick("index", "groups", "register")
    return write_module(draw, name, f"Names by {thing.one}.", _INDEX, slots, probes)


FAMILIES: dict[str, Family] = {
    "bounded_stack": bounded_stack,
    "undo_history": undo_history,
    "group_index": group_index,
}
