"""The expert: short work on a generated instance by one who knows the bug, with detours and recoveries."""

import random
import re
from collections.abc import Iterator

from harness.starter.generate import GeneratedInstance
from harness.starter.generate.mutations import find_mutations
from nano.data.change import Change, describe, enclosing_function, find_change, write_edits
from nano.data.conversation import Conversation, Turn
from nano.data.testbed import Done, Testbed

_WORD = re.compile(r"[A-Za-z_]\w*")
_LONGEST_SHOWN = 60
_TRIES = 4
_MOST_DETOURS = 2
_NEAR = 0.5

LIST_FIRST = 0.15
WRONG_FILE = 0.06
REPRODUCE = 0.06
WRONG_EDIT = 0.25
"""Of all episodes, and again of those with one wrong edit."""
AMBIGUOUS_EDIT = 0.5
"""Of the edits whose shortest `old` occurs more than once."""
INEXACT_EDIT = 0.04
RUN_TESTS = 0.12


def solve(task: GeneratedInstance, seed: int) -> Conversation:
    """The expert's work on `task`; `seed` decides which detours it takes."""
    return _Work(task, random.Random(f"expert {seed}")).solve()


class _Work:
    """The turns so far, and the repository as they left it."""

    def __init__(self, task: GeneratedInstance, randomness: random.Random) -> None:
        self._task = task
        self._random = randomness
        self._testbed = Testbed(task.base, task.package)
        self._turns: list[Turn] = []
        self._detours = 0
        self._check = task.checks[0]
        self._buggy = task.base[task.bug_path]
        self._change = find_change(self._buggy, task.fixed_text)
        self._function = enclosing_function(task.fixed_text, self._change.start)

    def solve(self) -> Conversation:
        self._find()
        if self._happens(REPRODUCE):
            self._reproduce()
        texts = self._wrong_texts()
        while self._happens(WRONG_EDIT) and self._mistake(texts):
            pass
        self._mend()
        verdict = self._verify()
        if self._happens(RUN_TESTS):
            verdict = self._run_tests(verdict)
        self._do(verdict, self._testbed.submit())
        return Conversation(self._task.problem_statement, tuple(self._turns))

    def _find(self) -> None:
        """Up to the file with the bug, which is read."""
        name = self._task.subject
        if self._happens(LIST_FIRST):
            self._do("I look at the files.", self._testbed.list_files())
        self._do(f"I look for `{name}`.", self._testbed.search(name))
        others = [path for path in self._sources() if path != self._task.bug_path]
        if others and self._happens(WRONG_FILE):
            self._do("I read the file.", self._testbed.show(self._random.choice(others)), taught=False)
            self._do(f"`{name}` is in another file, so I read that.", self._testbed.show(self._task.bug_path))
        else:
            self._do("I read the file.", self._testbed.show(self._task.bug_path))

    def _reproduce(self) -> None:
        done = self._run(self._check.actual)
        if done:
            self._do("I try the call.", done)

    def _mistake(self, texts: Iterator[tuple[str, str]]) -> bool:
        """The next edit that does not help: the call shows that, and it is taken back. False where there is none."""
        expected = self._check.expected
        for kind, text in texts:
            change = find_change(self._buggy, text)
            edit = write_edits(self._buggy, change)[-1]
            told = self._testbed.edit(self._task.bug_path, *edit)
            done = self._run()
            if done is None or done.output == expected:
                self._testbed.restore(self._task.bug_path)
                continue
            function = enclosing_function(text, change.start)
            self._do(describe(kind, function, change), told, taught=False)
            self._do("I try the call.", done)
            restored = self._testbed.restore(self._task.bug_path)
            self._do(f"{self._judge(done.output)}, so I take the change back.", restored)
            return True
        return False

    def _wrong_texts(self) -> Iterator[tuple[str, str]]:
        """Other changes of the file with the bug, half of them where the bug is: each with the kind of its mutation."""
        found = [each for mutations in find_mutations(self._buggy).values() for each in mutations]
        found = self._random.sample(found, len(found))
        texts = [(each.kind, each.apply(self._buggy)) for each in found]
        wrong = [(kind, text) for kind, text in texts if text != self._task.fixed_text]
        near = [each for each in wrong if self._is_near(find_change(self._buggy, each[1]))]
        yield from [*near, *wrong][:_TRIES] if self._random.random() < _NEAR else wrong[:_TRIES]

    def _is_near(self, change: Change) -> bool:
        return abs(change.start - self._change.start) <= 1

    def _mend(self) -> None:
        said = describe(self._task.kind, self._function, self._change)
        edits = write_edits(self._buggy, self._change)
        if len(edits) > 1 and self._happens(AMBIGUOUS_EDIT):
            self._do(said, self._edit(edits[0]), taught=False)
            said = "I add the lines before it, so that it occurs once."
        elif self._happens(INEXACT_EDIT) and _WORD.search(edits[-1][0]):
            self._do(said, self._edit((self._misread(edits[-1][0]), edits[-1][1])), taught=False)
            said = "I copy the text exactly."
        self._do(said, self._edit(edits[-1]), mends=True)

    def _misread(self, old: str) -> str:
        """The text without one of its words, so that it does not occur."""
        words = list(_WORD.finditer(old))
        word = self._random.choice(words)
        return f"{old[: word.start()]}{word[0]}_{old[word.end() :]}"

    def _verify(self) -> str:
        """Run the call of the issue; the words that say what came of it."""
        done = self._run(self._check.expected)
        if done is None:
            return "That was the cause."
        self._do("I try the call.", done)
        return f"{self._judge(done.output)}."

    def _judge(self, output: str) -> str:
        """What the call gives beside what it should give: a small model compares best what stands side by side."""
        expected = self._check.expected
        if max(len(output), len(expected)) <= _LONGEST_SHOWN:
            return f"It should give `{expected}` and gives `{output}`"
        return "It gives what it should" if output == expected else "It does not give what it should"

    def _run_tests(self, verdict: str) -> str:
        """Run the tests of the file with the bug, where there are any; the words that say what came of it."""
        name = self._task.bug_path.rpartition("/")[2]
        path = f"tests/test_{name}"
        if path not in self._testbed.files:
            return verdict
        self._do(f"{verdict} I run the tests of that file, too.", self._testbed.test(path, self._random))
        return "The tests pass."

    def _run(self, known: str | None = None) -> Done | None:
        return self._testbed.run(self._check, known)

    def _edit(self, pair: tuple[str, str]) -> Done:
        return self._testbed.edit(self._task.bug_path, *pair)

    def _sources(self) -> list[str]:
        return [path for path in self._task.base if path.startswith(f"{self._task.package}/") and path.endswith(".py")]

    def _happens(self, chance: float) -> bool:
        """Whether to take a detour; at most two, so that the steps suffice and nobody is warned of their end."""
        taken = self._detours < _MOST_DETOURS and self._random.random() < chance
        self._detours += taken
        return taken

    def _do(self, text: str, done: Done, *, taught: bool = True, mends: bool = False) -> None:
        self._turns.append(Turn(text, done.tool, done.arguments, done.observation, taught, mends))
