"""Prometheus metrics, read from the engine's counters when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

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


def render(session: Session) -> bytes:
    """The metrics page in Prometheus' text format; a figure that the engine does not count is left out."""
    registry = CollectorRegistry()
    registry.register(_EngineCollector(session))
    return generate_latest(registry)


class _EngineCollector(Collector):
    def __init__(self, session: Session) -> None:
        self._session = session

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats = self._session.stats
        yield GaugeMetricFamily("sweq_ready", "1 when the model is loaded", value=self._session.state == "ready")
        for name, text in GAUGES.items():
            if name in stats:
                yield GaugeMetricFamily(f"sweq_{name}", text, value=stats[name])
        for name, text in COUNTERS.items():
            if name in stats:
                yield CounterMetricFamily(f"sweq_{name}", text, value=stats[name])
