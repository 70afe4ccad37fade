import pytest

from backoff import GaveUp, Policy, call, retry


class Flaky:
    """Fails as often as asked, then succeeds."""

    def __init__(self, failures, error=ConnectionError):
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error("not yet")
        return "done"


def test_success_needs_no_pause():
    pauses = []
    assert call(Flaky(0), Policy(), sleep=pauses.append) == "done"
    assert pauses == []


def test_pauses_between_attempts():
    pauses = []
    assert call(Flaky(2), Policy(attempts=3), sleep=pauses.append) == "done"
    assert pauses == [1.0, 2.0]


def test_gives_up():
    flaky = Flaky(9)
    with pytest.raises(GaveUp, match="after 3 attempts") as caught:
        call(flaky, Policy(attempts=3), sleep=lambda delay: None)
    assert flaky.calls == caught.value.attempts == 3
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_other_errors_pass_through():
    flaky = Flaky(1, error=KeyError)
    with pytest.raises(KeyError):
        call(flaky, Policy(), on=(ConnectionError,), sleep=lambda delay: None)
    assert flaky.calls == 1


def test_decorator_passes_arguments():
    seen = []

    @retry(Policy(attempts=2), sleep=lambda delay: None)
    def add(left, right):
        seen.append((left, right))
        if len(seen) == 1:
            raise OSError
        return left + right

    assert add(1, right=2) == 3
    assert seen == [(1, 2), (1, 2)]
