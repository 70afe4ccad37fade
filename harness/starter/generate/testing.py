"""The test files of a generated package."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.starter.generate.execution import Outcome
from harness.starter.generate.family import Probe, names_used

_WIDTH = 110


@dataclass(frozen=True)
class Test:
    """One test function: its name, and the probe whose outcome it demands."""

    name: str
    probe: Probe
    outcome: Outcome

    def write(self, style: str) -> str:
        """The function's source; `style` is `plain`, or `named` for one that names what it expects."""
        body = [f"    {line}" for line in self.probe.setup]
        if self.outcome.error:
            body += [f"    with pytest.raises({self.outcome.exception}):", f"        {self.probe.call}"]
            return "\n".join([f"def {self.name}():", *body])
        value = repr(self.outcome.value)
        if self.outcome.value is None or isinstance(self.outcome.value, bool):
            body.append(f"    assert {self.probe.call} is {value}")
        elif style == "named" or len(self.probe.call) + len(value) > _WIDTH:
            body += [f"    expected = {value}", f"    assert {self.probe.call} == expected"]
        else:
            body.append(f"    assert {self.probe.call} == {value}")
        return "\n".join([f"def {self.name}():", *body])


def write_tests(module: str, known: Sequence[str], tests: Sequence[Test], style: str) -> str:
    """A test file that imports from `module` (dotted) those of its `known` names that the tests use."""
    names = {name for test in tests for name in names_used(test.probe, known)}
    names |= {test.outcome.exception for test in tests if test.outcome.exception in known}
    imports = f"from {module} import {', '.join(sorted(names))}\n"
    head = "import pytest\n\n" if any(test.outcome.error for test in tests) else ""
    return head + imports + "\n\n" + "\n\n\n".join(test.write(style) for test in tests) + "\n"
