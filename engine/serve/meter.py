"""What the server measures of requests: how long tokens take to come, and how requests end."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from engine.core.request import StepOutput

FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
INTER_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)


class Histogram:
    """Counts of seconds by upper bounds, which ascend. One addition and a binary search for each observation."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, seconds: float, times: int = 1) -> None:
        self._counts[bisect_left(self.bounds, seconds)] += times
        self.sum += seconds * times

    def buckets(self) -> list[tuple[str, float]]:
        """`(upper bound, observations at most that)`, the last bound infinite, as Prometheus has them."""
        total, found = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class Stopwatch:
    """When the tokens of one request came, in seconds of a monotonic clock."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.latest: dict[int, float] = {}


class Meter:
    """Histograms of all requests, and how many ended for which reason. On the event loop's thread only.

    `first_token` is measured from a request's entry into the queue; `inter_token` per choice, where tokens that came
    together share the time they took.
    """

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN_SECONDS)
        self.inter_token = Histogram(INTER_TOKEN_SECONDS)
        self.finished: Counter[str] = Counter()

    def note(self, output: StepOutput, watch: Stopwatch, now: float) -> None:
        """Take in one output of the request that `watch` belongs to."""
        tokens = len(output.token_ids)
        if tokens:
            latest = watch.latest.get(output.index)
            if latest is not None:
                self.inter_token.observe((now - latest) / tokens, tokens)
            elif not watch.latest:
                self.first_token.observe(now - watch.started)
            watch.latest[output.index] = now
        if output.finish_reason is not None:
            self.finished[output.finish_reason] += 1
