"""What a user writes who sees the symptom and does not know the cause."""

from collections.abc import Sequence

from harness.starter.generate.draw import Draw
from harness.starter.generate.instance import Check
from harness.starter.generate.words import USES

_SHORTEST, _LONGEST = 25, 90


def write_issue(draw: Draw, subject: str, package: str, promise: str, symptoms: Sequence[Check]) -> str:
    """Title, blank line, text of 25 to 90 words. `promise` is the docstring's first sentence, or empty."""
    first = symptoms[0]
    parts = [_show(draw, first)]
    if len(symptoms) > 1 and draw.flip(0.4):
        parts.append(_again(draw, symptoms[1]))
    if promise and '"' not in promise and draw.flip(0.45):
        parts.append(_quote(draw, subject, promise))
    for sentence in draw.shuffle(_fillers(draw, subject, package)):
        if _count(parts) >= _SHORTEST:
            break
        parts.insert(0 if draw.flip() else len(parts), sentence)
    return "\n\n".join([_title(draw, subject, first), *_join(parts)]) + "\n"


def _count(parts: Sequence[str]) -> int:
    return len(" ".join(parts).split())


def _join(parts: Sequence[str]) -> list[str]:
    """Sentences become paragraphs; what has lines of its own stays apart."""
    paragraphs: list[str] = []
    for part in parts:
        if paragraphs and "\n" not in part and "\n" not in paragraphs[-1]:
            paragraphs[-1] += f" {part}"
        else:
            paragraphs.append(part)
    return paragraphs


def _title(draw: Draw, subject: str, symptom: Check) -> str:
    titles = [
        f"{subject} gives a wrong result",
        f"{subject} is wrong for some input",
        f"Bug in {subject}",
        f"{subject}() does not do what its docstring says",
        f"Unexpected result of {subject}",
    ]
    if symptom.gives_error:
        kind = symptom.actual.split(":")[0].rpartition(".")[2]
        titles = [f"{subject} raises {kind}", f"{kind} from {subject}", f"{subject} fails with {kind}"]
    elif symptom.expects_error:
        titles = [f"{subject} accepts what it should refuse", f"{subject} raises nothing", f"No error from {subject}"]
    elif len(symptom.actual) + len(symptom.expected) < 30:
        titles += [
            f"{subject} returns {symptom.actual} instead of {symptom.expected}",
            f"{subject}: got {symptom.actual}, expected {symptom.expected}",
        ]
    return draw.pick(*titles)


def _show(draw: Draw, symptom: Check) -> str:
    """The call and both results, as a session or in a sentence."""
    wanted = f"an error, `{symptom.expected}`" if symptom.expects_error else f"`{symptom.expected}`"
    if symptom.setup.count("\n") or draw.flip():
        lines = [f">>> {line}" for line in (*symptom.setup.split("\n"), symptom.call)]
        if not symptom.gives_error:
            lines[-1] = f">>> print({symptom.call})"
        ending = draw.pick(f"I expected {wanted}.", f"It should be {wanted}.", f"The right answer is {wanted}.")
        return "\n".join([*lines, symptom.actual]) + "\n\n" + ending
    given = f"fails with `{symptom.actual}`" if symptom.gives_error else f"gives `{symptom.actual}`"
    return draw.pick(
        f"`{symptom.call}` {given}, but I expected {wanted}.",
        f"When I call `{symptom.call}`, it {given}. It should be {wanted}.",
        f"The call `{symptom.call}` {given} here; the right answer would be {wanted}.",
        f"I tried `{symptom.call}`. That {given}, while {wanted} is right.",
    )


def _again(draw: Draw, symptom: Check) -> str:
    given = f"fails with `{symptom.actual}`" if symptom.gives_error else f"gives `{symptom.actual}`"
    if symptom.setup.count("\n"):
        return draw.pick("I see the same with other values.", "Other values are affected, too.")
    return draw.pick(
        f"Also `{symptom.call}` {given} instead of `{symptom.expected}`.",
        f"The same with `{symptom.call}`: it {given}, not `{symptom.expected}`.",
    )


def _quote(draw: Draw, subject: str, promise: str) -> str:
    promise = promise.rstrip(".")
    return draw.pick(
        f'The docstring says: "{promise}."',
        f'According to its docstring, {subject} does this: "{promise}."',
        f'This is not what the documentation promises ("{promise}").',
    )


def _fillers(draw: Draw, subject: str, package: str) -> list[str]:
    use = draw.pick(*USES)
    return [
        draw.pick(
            f"We use {package} in {use}.",
            f"I found this in {use}, which uses {package}.",
            f"I came upon this in {use}.",
        ),
        draw.pick(
            f"Other calls of {subject} look right to me.",
            "The rest of the package works as it should.",
            "Everything else that I tried was fine.",
        ),
        draw.pick(
            "I have not found the cause yet.",
            "I do not know which line is to blame.",
            "Please have a look.",
            "It would be good to have this mended soon.",
        ),
        draw.pick(
            "The version is the newest one, and I see it every time.",
            "It happens every time, also in a fresh interpreter.",
            "This worked for me in an older version.",
        ),
    ]
