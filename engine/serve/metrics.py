"""Prometheus metrics, read from the counters of the engine and of what surrounds it when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.serve.guard.traffic import Traffic
from engine.serve.session import Session

GAUGES = {
    "running": "Requests in the running batch",
    "waiting": "Requests that wait for a place",
    "blocks_used": "Blocks of the KV cache in use",
    "blocks_cached": "Blocks that only the prefix cache holds",
    "blocks_total": "Blocks of the KV cache",
    "state_slots_used": "DeltaNet state slots of running requests",
    "state_slots_total": "DeltaNet state slots",
    "snapshots_device": "DeltaNet state snapshots kept on the device",
    "snapshots_host": "DeltaNet state snapshots kept in host memory",
    "swap_bytes_used": "Bytes of preempted requests in host memory",
}
COUNTERS = {
    "prompt_tokens": "Prompt tokens of admitted requests",
    "prefilled_tokens": "Prompt tokens computed",
    "generated_tokens": "Tokens generated",
    "preemptions": "Requests put back to be computed again",
    "prefix_hit_tokens": "Prompt tokens taken from the prefix cache",
    "prefix_hit_tokens_device": "Of these, continued from state on the device",
    "prefix_hit_tokens_host": "Of these, continued from a state snapshot in host memory",
    "recomputed_tokens": "Tokens computed again although they had been before",
    "swapped_tokens": "Tokens of preempted requests copied back from host memory",
}


REPLAY = {
    "replayed_turns": "Assistant turns put into prompts as the ids that were generated",
    "replayed_tokens": "Tokens of these turns",
    "tokenized_turns": "Assistant turns put into prompts by tokenizing their text",
}


def render(session: Session, traffic: Traffic) -> bytes:
    """The metrics page in Prometheus' text format; a figure that the engine does not count is left out."""
    registry = CollectorRegistry()
    registry.register(_ServerCollector(session, traffic))
    return generate_latest(registry)


class _ServerCollector(Collector):
    def __init__(self, session: Session, traffic: Traffic) -> None:
        self._session = session
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("sweq_ready", "1 when the model is loaded", value=self._session.state == "ready")
        yield from self._engine()
        yield from self._requests()
        yield from self._histograms()

    def _engine(self) -> Iterator[Metric]:
        stats = self._session.stats
        for name, text in GAUGES.items():
            if name in stats:
                yield GaugeMetricFamily(f"sweq_{name}", text, value=stats[name])
        for name, text in COUNTERS.items():
            if name in stats:
                yield CounterMetricFamily(f"sweq_{name}", text, value=stats[name])
        if self._session.service is not None:
            for name, text in REPLAY.items():
                yield CounterMetricFamily(f"sweq_{name}", text, value=getattr(self._session.service.history, name))

    def _requests(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("sweq_open_requests", "POST requests taken and not yet answered", self._traffic.open)
        requests = CounterMetricFamily(
            "sweq_requests", "HTTP requests by outcome; 499: the client left before the end", labels=("route", "status")
        )
        for (route, status), count in sorted(self._traffic.outcomes.items()):
            requests.add_metric((route, str(status)), count)
        yield requests
        finished = CounterMetricFamily(
            "sweq_finished", "Completions by the reason for their end", labels=("finish_reason",)
        )
        for reason, count in sorted(self._session.meter.finished.items()):
            finished.add_metric((reason,), count)
        yield finished

    def _histograms(self) -> Iterator[Metric]:
        meter = self._session.meter
        for name, text, histogram in (
            ("time_to_first_token", "From a request's entry into the queue to its first token", meter.first_token),
            (
                "inter_token",
                "Between a completion's tokens; those that come together share their time",
                meter.inter_token,
            ),
        ):
            yield HistogramMetricFamily(
                f"sweq_{name}_seconds", text, buckets=histogram.buckets(), sum_value=histogram.sum
            )
