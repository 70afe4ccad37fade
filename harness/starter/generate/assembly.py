"""From a seed to a proved instance: modules, one bug, tests, issue."""

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.starter.generate.draw import Draw, NoNameLeftError, is_held_out
from harness.starter.generate.execution import Outcome
from harness.starter.generate.family import Module, Probe, names_used, public_names, subject_of
from harness.starter.generate.instance import Check, GeneratedInstance
from harness.starter.generate.issue import write_issue
from harness.starter.generate.layout import lay_out, observe_all, prove
from harness.starter.generate.mutations import Mutation, find_mutations
from harness.starter.generate.parts import choose_families, takes_kind
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


@dataclass(frozen=True)
class _Draft:
    """What is drawn before the bug; the bug goes into the first module."""

    draw: Draw
    seed: int
    part: str
    family: str
    package: str
    modules: list[Module]

    @property
    def target(self) -> Module:
        return self.modules[0]


def assemble(seed: int, part: str) -> GeneratedInstance:
    """The instance of this seed: tries come one after another until one has a bug that its probes notice."""
    for attempt in range(_ATTEMPTS):
        draw = Draw(random.Random(f"{part}:{seed}:{attempt}"), held_out=part != "train")
        draft = _begin(draw, seed, part)
        found = next(_find_bugs(draft), None) if draft else None
        instance = _finish(draft, *found) if draft and found else None
        if instance is not None:
            return instance
    raise ValueError(f"no instance after {_ATTEMPTS} attempts: seed {seed} of part {part}")


def _begin(draw: Draw, seed: int, part: str) -> _Draft | None:
    """The correct package; None where names ran out, clash or, in a part of evaluation, are none held out."""
    try:
        package = draw.package()
        families = choose_families(draw, part)
        modules = [family(draw) for _, family in families]
    except NoNameLeftError:
        return None
    if len({module.name for module in modules}) < len(modules):
        return None
    if part != "train" and not any(map(is_held_out, public_names(modules[0].text))):
        return None
    return _Draft(draw, seed, part, families[0][0], package, modules)


def _find_bugs(draft: _Draft) -> Iterator[tuple[Mutation, list[_Seen]]]:
    """Bugs that the part may have and that some probe notices, kinds in random order, a few places of each."""
    right = observe_all(draft.package, draft.target, draft.target.text)
    mutations = find_mutations(draft.target.text)
    for kind in draft.draw.shuffle(sorted(mutations)):
        if takes_kind(draft.part, draft.family, kind):
            for mutation in draft.draw.shuffle(mutations[kind])[:_PLACES]:
                seen = _compare(draft, mutation, right)
                if seen:
                    yield mutation, seen


def _compare(draft: _Draft, mutation: Mutation, right: Sequence[Outcome | None]) -> list[_Seen]:
    """Every usable probe with both outcomes; empty unless some differ and some do not, and nothing hangs."""
    wrong = observe_all(draft.package, draft.target, mutation.apply(draft.target.text))
    if len(wrong) < len(right):
        return []
    seen: dict[str, _Seen] = {}
    for probe, good, bad in zip(draft.target.probes, right, wrong, strict=True):
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


def _finish(draft: _Draft, mutation: Mutation, seen: Sequence[_Seen]) -> GeneratedInstance | None:
    """Tests, proof and issue; None where the tests do not tell the bug."""
    draw, package, target = draft.draw, draft.package, draft.target
    symptoms = _choose_symptoms(draw, seen)
    failing = symptoms + [each for each in seen if each.differs and each not in symptoms][:1]
    passing = draw.shuffle([each for each in seen if not each.differs])
    right = write_surroundings(draw, package, draft.modules)
    right |= {f"{package}/{module.name}.py": module.text for module in draft.modules}
    bug_path = f"{package}/{target.name}.py"
    base = right | {bug_path: mutation.apply(target.text)}
    told = [(each.probe, each.right) for each in failing[: draw.number(1, 3)]]
    tests = lay_out(draw, package, draft.modules, told, [(each.probe, each.right) for each in passing])
    verdicts = prove(package, right, base, tests)
    if verdicts is None:
        return None
    base |= tests.existing
    checks = tuple(_write_check(package, target, each) for each in symptoms)
    subject = subject_of(symptoms[0].probe)
    return GeneratedInstance(
        instance_id=f"gen__{package}-{draft.seed}",
        part=draft.part,
        seed=draft.seed,
        family=draft.family,
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


def _choose_symptoms(draw: Draw, seen: Sequence[_Seen]) -> list[_Seen]:
    """Up to three of the briefest differences; wrong values before errors that are missing or wrong."""
    told = sorted((each for each in seen if each.differs and each.told), key=_weight)
    return sorted(draw.shuffle(told[:3]), key=lambda each: bool(each.right.error))


def _weight(seen: _Seen) -> tuple[bool, int]:
    size = sum(map(len, (seen.probe.call, *seen.probe.setup, seen.right.shown, seen.wrong.shown)))
    return bool(seen.right.error), size


def _write_check(package: str, module: Module, seen: _Seen) -> Check:
    used = names_used(seen.probe, public_names(module.text))
    return Check(
        setup="\n".join([f"from {package}.{module.name} import {', '.join(used)}", *seen.probe.setup]),
        call=seen.probe.call,
        expected=seen.right.shown,
        actual=seen.wrong.shown,
        expects_error=bool(seen.right.error),
        gives_error=bool(seen.wrong.error),
    )


def promise_of(text: str, subject: str) -> str:
    """The first sentence of the docstring of a function, method or class; empty where it has none."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == subject:
            return (ast.get_docstring(node) or "").split("\n")[0].split(". ")[0].rstrip(".")
    return ""
