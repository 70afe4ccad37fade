"""Generated code runs in this process: modules from memory, with bounds on the lines it executes and what it makes."""

import builtins
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any

from harness.starter.generate.family import Probe
from harness.starter.generate.limits import GUARDS, Endless, guard, size_in

_LINES = 20_000
_EVERY = 8
_FREE = 100
_MARK = "<generated>"
_PLAIN = (int, float, str, bool, type(None))
_DEEP = 60


@dataclass(frozen=True)
class Outcome:
    """What one probe gave: `shown` is what `print` writes, or `error` the last line of a traceback."""

    value: Any = None
    error: str = ""

    @property
    def shown(self) -> str:
        """The line that the user sees."""
        return self.error or str(self.value)

    @property
    def exception(self) -> str:
        """The exception's class name; empty where there is none."""
        return self.error.split(":")[0].rpartition(".")[2]


@contextmanager
def bounded(lines: int = _LINES) -> Iterator[None]:
    """Raise `Endless` in generated code once it has executed this many lines inside the block.

    While it holds a value of n times 100 elements, a line counts for n more: no more than some millions are ever made.
    """
    left = lines

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        left -= 1
        if left % _EVERY == 0:
            left -= size_in(frame) // _FREE * _EVERY
        if left < 0:
            raise Endless
        return count

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        return count if frame.f_code.co_filename == _MARK else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


@lru_cache(maxsize=512)
def compile_text(text: str, mode: str = "exec") -> CodeType:
    """The code object; compiled once for each text."""
    return compile(guard(text, mode), _MARK, mode)


class _Raises:
    """`with pytest.raises(X):` for test files that run here, where pytest need not be installed."""

    def __init__(self, expected: type[BaseException]) -> None:
        self._expected = expected

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> bool:
        assert kind is not None, "nothing was raised"
        return issubclass(kind, self._expected)


def load_package(package: str, files: Mapping[str, str]) -> dict[str, ModuleType]:
    """The modules of a package, executed in memory, by dotted name; `files` maps their paths to text.

    Raises whatever the code raises.
    """
    stand_in = ModuleType("pytest")
    stand_in.__dict__["raises"] = _Raises
    modules = {"pytest": stand_in}
    top = ModuleType(package)
    names = {path.removesuffix(".py").replace("/", "."): path for path in files if path.startswith(f"{package}/")}
    for name, path in names.items():
        if not name.endswith(".__init__"):
            module = modules[name] = ModuleType(name)
            run_in(module.__dict__, files[path], modules)
            setattr(top, name.rpartition(".")[2], module)
    modules[package] = top
    run_in(top.__dict__, files.get(f"{package}/__init__.py", ""), modules)
    return modules


def run_in(namespace: dict[str, Any], text: str, modules: Mapping[str, ModuleType]) -> None:
    """Execute a module's text in `namespace`; its imports see `modules` before those of this process."""

    def find(name: str, glob: Any = None, loc: Any = None, wanted: Sequence[str] = (), level: int = 0) -> ModuleType:
        if name in modules:
            return modules[name] if wanted else modules[name.partition(".")[0]]
        return __import__(name, glob, loc, wanted, level)

    namespace["__builtins__"] = {**builtins.__dict__, **GUARDS, "__import__": find}
    exec(compile_text(text), namespace)


def observe(namespace: Mapping[str, Any], probe: Probe) -> Outcome | None:
    """What the probe gives in a copy of the module's namespace; None where it hangs or gives no plain value.

    Raises MemoryError, should the process lack memory: what a probe gives must not depend on the machine.
    """
    scratch = dict(namespace)
    try:
        with bounded():
            for line in probe.setup:
                exec(compile_text(line), scratch)
            value = eval(compile_text(probe.call, "eval"), scratch)
    except (Endless, RecursionError):
        return None
    except MemoryError:
        raise
    except Exception as error:
        return Outcome(error=_last_line(error))
    return Outcome(value) if _is_plain(value) else None


def _last_line(error: Exception) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = str(error)
    return f"{name}: {text}" if text else name


def _is_plain(value: object, depth: int = 0) -> bool:
    """Whether the value's repr is an expression that gives it again, the same in every process."""
    if isinstance(value, list | tuple):
        return depth < _DEEP and all(_is_plain(each, depth + 1) for each in value)
    if isinstance(value, dict):
        return depth < _DEEP and all(_is_plain(each, depth + 1) for pair in value.items() for each in pair)
    return isinstance(value, _PLAIN) and value == value and abs(value if isinstance(value, float) else 0) < 1e15


def run_tests(text: str, modules: Mapping[str, ModuleType]) -> dict[str, bool]:
    """Whether each `test_...` function of a test file passes, in the file's order."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    run_in(namespace, text, modules)
    return {name: _passes(each) for name, each in list(namespace.items()) if name.startswith("test_")}


def _passes(test: Any) -> bool:
    try:
        with bounded():
            test()
    except MemoryError:
        raise
    except (Exception, Endless):
        return False
    return True
