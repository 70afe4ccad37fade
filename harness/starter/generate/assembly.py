"""From a seed to a proved instance: modules, one bug, tests, issue."""

import ast
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.starter.generate.draw import Draw, NoNameLeftError, is_held_out
from harness.starter.generate.execution import Outcome, load_package, observe, run_tests
from harness.starter.generate.family import Module, Probe, names_used, public_names
from harness.starter.generate.instance import Check, GeneratedInstance
from harness.starter.generate.issue import write_issue
from harness.starter.generate.mutations import Mutation, find_mutations
from harness.starter.generate.parts import choose_families, takes_kind
from harness.starter.generate.testing import Test, write_tests
from harness.starter.generate.tree import diff_file, write_surroundings

_ATTEMPTS = 60
_PLACES = 4
_ROOM = 170
_SHELL = set('"\\`$!')


@dataclass(frozen=True)
class _Seen:
    """One probe of the target with its outcomes, right and with the bug."""

    probe: Probe
    right: Outcome
    wrong: Outcome

    @property
    def differs(self) -> bool:
        return self.right.error != self.wrong.error or self.right.value != self.wrong.value

    @property
    def told(self) -> bool:
        """Whether a user sees the difference, and briefly enough to report it."""
        shown = (self.right.shown, self.wrong.shown)
        clear = shown[0] != shown[1] and all(each and each == each.strip() for each in shown)
        return clear and "\n" not in "".join(shown) and len(self.probe.call) + sum(map(len, shown)) <= _ROOM


def assemble(seed: int, part: str) -> GeneratedInstance:
    """The instance of this seed: tries come one after another until one has a bug that its probes notice."""
    for attempt in range(_ATTEMPTS):
        draw = Draw(random.Random(f"{part}:{seed}:{attempt}"), held_out=part != "train")
        try:
            instance = _try(draw, seed, part)
        except NoNameLeftError:
            continue
        if instance is not None:
            return instance
    raise ValueError(f"no instance after {_ATTEMPTS} attempts: seed {seed} of part {part}")


def _try(draw: Draw, seed: int, part: str) -> GeneratedInstance | None:
    package = draw.package()
    families = choose_families(draw, part)
    target, name = families[0][1](draw), families[0][0]
    if part != "train" and not any(map(is_held_out, public_names(target.text))):
        return None
    modules = [target, *(family(draw) for _, family in families[1:])]
    if len({module.name for module in modules}) < len(modules):
        return None
    right = _observe_all(package, target, target.text)
    mutations = find_mutations(target.text)
    for kind in draw.shuffle(sorted(mutations)):
        if not takes_kind(part, name, kind):
            continue
        for mutation in draw.shuffle(mutations[kind])[:_PLACES]:
            seen = _compare(package, target, mutation, right)
            if seen:
                return _finish(draw, seed, part, name, package, modules, mutation, seen)
    return None


def _observe_all(package: str, module: Module, text: str) -> list[Outcome | None]:
    """The outcome of each probe of the module with this text; empty where the text cannot even be loaded."""
    try:
        loaded = load_package(package, {f"{package}/{module.name}.py": text})
    except Exception:
        return []
    namespace = loaded[f"{package}.{module.name}"].__dict__
    return [observe(namespace, probe) for probe in module.probes]


def _compare(package: str, module: Module, mutation: Mutation, right: Sequence[Outcome | None]) -> list[_Seen]:
    """Every usable probe with both outcomes; empty unless some differ and some do not, and nothing hangs."""
    wrong = _observe_all(package, module, mutation.apply(module.text))
    if len(wrong) < len(right):
        return []
    seen: dict[str, _Seen] = {}
    for probe, good, bad in zip(module.probes, right, wrong, strict=True):
        if good is None or _SHELL.intersection(probe.call + "".join(probe.setup) + good.shown):
            continue
        if bad is None:
            return []
        each = _Seen(probe, good, bad)
        if not each.differs or not _SHELL.intersection(bad.shown):
            seen.setdefault(repr(probe), each)
    found = list(seen.values())
    usable = any(each.differs and each.told for each in found) and not all(each.differs for each in found)
    return found if usable else []


def _finish(
    draw: Draw,
    seed: int,
    part: str,
    family: str,
    package: str,
    modules: Sequence[Module],
    mutation: Mutation,
    seen: Sequence[_Seen],
) -> GeneratedInstance | None:
    target = modules[0]
    told = sorted((each for each in seen if each.differs and each.told), key=_weight)
    symptoms = draw.shuffle(told[:3])
    symptoms.sort(key=lambda each: bool(each.right.error))
    failing = symptoms + [each for each in seen if each.differs and each not in symptoms][:1]
    passing = draw.shuffle([each for each in seen if not each.differs])
    base = write_surroundings(draw, package, modules)
    base |= {f"{package}/{module.name}.py": module.text for module in modules}
    bug_path = f"{package}/{target.name}.py"
    right_files = dict(base)
    base[bug_path] = mutation.apply(target.text)
    style = draw.pick("plain", "plain", "named")
    tests = _write_tests(draw, package, modules, failing[: draw.number(1, 3)], passing, style)
    base |= tests.existing
    verdicts = _prove(package, right_files, base, tests)
    if verdicts is None:
        return None
    subject = subject_of(symptoms[0].probe)
    names = public_names(target.text)
    checks = tuple(_write_check(package, target.name, names, each) for each in symptoms)
    return GeneratedInstance(
        instance_id=f"gen__{package}-{seed}",
        part=part,
        seed=seed,
        family=family,
        kind=mutation.kind,
        repo=f"gen/{package}",
        package=package,
        base=dict(sorted(base.items())),
        bug_path=bug_path,
        fixed_text=target.text,
        patch=diff_file(bug_path, base[bug_path], target.text),
        test_patch=diff_file(tests.path, base.get(tests.path), tests.text),
        problem_statement=write_issue(draw, subject, package, promise_of(target.text, subject), checks),
        fail_to_pass=tuple(sorted(f"{tests.path}::{name}" for name, good in verdicts.items() if not good)),
        pass_to_pass=tuple(sorted(f"{tests.path}::{name}" for name, good in verdicts.items() if good)),
        checks=checks,
        subject=subject,
    )


def _weight(seen: _Seen) -> tuple[bool, int]:
    """What is easiest to report comes first: a wrong value rather than a missing error, and little text."""
    size = sum(map(len, (seen.probe.call, *seen.probe.setup, seen.right.shown, seen.wrong.shown)))
    return bool(seen.right.error), size


@dataclass(frozen=True)
class _Tests:
    """`existing` files of the base tree, and the file that the test patch leaves behind."""

    existing: dict[str, str]
    path: str
    text: str


def _write_tests(
    draw: Draw, package: str, modules: Sequence[Module], failing: Sequence[_Seen], passing: Sequence[_Seen], style: str
) -> _Tests:
    target = modules[0]
    kept = min(len(passing), draw.number(2, 4))
    old = [(each.probe, each.right) for each in passing[:kept]]
    new = [(each.probe, each.right) for each in (*failing, *passing[kept : kept + draw.number(0, 2)])]
    existing: dict[str, str] = {}
    tested = modules if len(modules) == 2 else [draw.pick(*modules)]
    for module in tested:
        outcomes = old if module is target else _some_outcomes(draw, package, module)
        if module is not target or draw.flip(0.85):
            existing[f"tests/test_{module.name}.py"] = _write_file(package, module, outcomes, style)
    path = f"tests/test_{target.name}.py"
    if path not in existing:
        return _Tests(existing, path, _write_file(package, target, [*old, *new], style))
    if draw.flip(0.75):
        return _Tests(existing, path, _write_file(package, target, [*old, *new], style))
    path = f"tests/test_{target.name}_{draw.pick('more', 'issue', 'again')}.py"
    return _Tests(existing, path, _write_file(package, target, [*new, *old[:1]], style))


def _some_outcomes(draw: Draw, package: str, module: Module) -> list[tuple[Probe, Outcome]]:
    pairs = zip(module.probes, _observe_all(package, module, module.text), strict=True)
    found = {repr(probe): (probe, outcome) for probe, outcome in pairs if outcome is not None}
    return draw.shuffle(list(found.values()))[: draw.number(2, 4)]


def _write_file(package: str, module: Module, outcomes: Sequence[tuple[Probe, Outcome]], style: str) -> str:
    counts: dict[str, int] = {}
    tests = []
    for probe, outcome in outcomes:
        subject = subject_of(probe)
        counts[subject] = number = counts.get(subject, 0) + 1
        name = f"test_{subject.lower()}" + (f"_{number}" if number > 1 else "")
        tests.append(Test(name, probe, outcome))
    return write_tests(f"{package}.{module.name}", public_names(module.text), tests, style)


def _prove(package: str, right: Mapping[str, str], base: Mapping[str, str], tests: _Tests) -> dict[str, bool] | None:
    """Whether each test of the patched file passes with the bug; None unless all pass without it and some fail."""
    fixed, buggy = load_package(package, right), load_package(package, base)
    files = (*tests.existing.values(), tests.text)
    if not all(all(run_tests(text, fixed).values()) for text in files):
        return None
    verdicts = run_tests(tests.text, buggy)
    sound = all(all(run_tests(text, buggy).values()) for text in tests.existing.values())
    return verdicts if sound and not all(verdicts.values()) and any(verdicts.values()) else None


def _write_check(package: str, module: str, names: Sequence[str], seen: _Seen) -> Check:
    used = names_used(seen.probe, names)
    return Check(
        setup="\n".join([f"from {package}.{module} import {', '.join(used)}", *seen.probe.setup]),
        call=seen.probe.call,
        expected=seen.right.shown,
        actual=seen.wrong.shown,
        expects_error=bool(seen.right.error),
        gives_error=bool(seen.wrong.error),
    )


def subject_of(probe: Probe) -> str:
    """The function, method or class whose result the probe's expression shows: its outermost call."""
    node: ast.AST = ast.parse(probe.call, mode="eval").body
    while not isinstance(node, ast.Call):
        if isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        elif isinstance(node, ast.List | ast.Tuple):
            node = node.elts[-1]
        elif isinstance(node, ast.ListComp):
            node = node.elt
        else:
            raise ValueError(f"no call in {probe.call!r}")
    if isinstance(node.func, ast.Name):
        inner = node.args[0] if node.args else node
        plain = node.func.id in {"list", "len", "sorted", "dict", "str"}
        return subject_of(Probe(ast.unparse(inner))) if plain else node.func.id
    assert isinstance(node.func, ast.Attribute)
    return node.func.attr


def promise_of(text: str, subject: str) -> str:
    """The first sentence of the docstring of a function, method or class; empty where it has none."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == subject:
            return (ast.get_docstring(node) or "").split("\n")[0].split(". ")[0].rstrip(".")
    return ""
