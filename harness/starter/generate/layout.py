"""Which observations become which tests, and the proof that they tell the bug."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.starter.generate.draw import Draw
from harness.starter.generate.execution import Outcome, load_package, observe, run_tests
from harness.starter.generate.family import Module, Probe, public_names, subject_of
from harness.starter.generate.limits import Endless
from harness.starter.generate.testing import Test, write_tests

Observation = tuple[Probe, Outcome]


@dataclass(frozen=True)
class Layout:
    """Test files by path: `existing` ones of the base tree, and the one that the test patch leaves at `path`."""

    existing: Mapping[str, str]
    path: str
    text: str


def observe_all(package: str, module: Module, text: str) -> list[Outcome | None]:
    """The outcome of each probe of the module with this text; empty where the text cannot even be loaded."""
    try:
        loaded = load_package(package, {f"{package}/{module.name}.py": text})
    except MemoryError:
        raise
    except (Exception, Endless):
        return []
    namespace = loaded[f"{package}.{module.name}"].__dict__
    return [observe(namespace, probe) for probe in module.probes]


def lay_out(
    draw: Draw,
    package: str,
    modules: Sequence[Module],
    failing: Sequence[Observation],
    passing: Sequence[Observation],
) -> Layout:
    """Tests for the first of `modules`, of which the base tree has some of `passing`, and for one or all others."""
    target, style = modules[0], draw.pick("plain", "plain", "named")
    kept = min(len(passing), draw.number(2, 4))
    old, new = list(passing[:kept]), [*failing, *passing[kept : kept + draw.number(0, 2)]]
    tested = modules if len(modules) == 2 else [draw.pick(*modules)]
    existing = {
        f"tests/test_{module.name}.py": _write_file(
            package, module, old if module is target else _choose(draw, package, module), style
        )
        for module in tested
        if module is not target or draw.flip(0.85)
    }
    path = f"tests/test_{target.name}.py"
    if path in existing and draw.flip(0.25):
        path = f"tests/test_{target.name}_{draw.pick('more', 'issue', 'again')}.py"
        return Layout(existing, path, _write_file(package, target, [*new, *old[:1]], style))
    return Layout(existing, path, _write_file(package, target, [*old, *new], style))


def _choose(draw: Draw, package: str, module: Module) -> list[Observation]:
    """A few observations of a module without a bug."""
    pairs = zip(module.probes, observe_all(package, module, module.text), strict=True)
    found = {repr(probe): (probe, outcome) for probe, outcome in pairs if outcome is not None}
    return draw.shuffle(list(found.values()))[: draw.number(2, 4)]


def _write_file(package: str, module: Module, observations: Sequence[Observation], style: str) -> str:
    counts: dict[str, int] = {}
    tests = []
    for probe, outcome in observations:
        subject = subject_of(probe).lower()
        counts[subject] = number = counts.get(subject, 0) + 1
        tests.append(Test(f"test_{subject}" + (f"_{number}" if number > 1 else ""), probe, outcome))
    return write_tests(f"{package}.{module.name}", public_names(module.text), tests, style)


def prove(package: str, right: Mapping[str, str], buggy: Mapping[str, str], layout: Layout) -> dict[str, bool] | None:
    """Whether each test of the patched file passes with the bug.

    None unless all tests pass with the `right` files, those of the base tree with the `buggy` ones, too, and some but
    not all of the patched file fail with them.
    """
    good, bad = load_package(package, right), load_package(package, buggy)
    sound = all(all(run_tests(text, good).values()) for text in (*layout.existing.values(), layout.text))
    sound = sound and all(all(run_tests(text, bad).values()) for text in layout.existing.values())
    verdicts = run_tests(layout.text, bad) if sound else {}
    return verdicts if any(verdicts.values()) and not all(verdicts.values()) else None
