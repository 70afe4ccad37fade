"""In which order images are best brought, and what bringing them will cost: a run's supply, simulated.

The simulation keeps the books with the same `Shelf` as the supply: at each step the images of the last `workers`
instances are held, and the next `prefetch` are brought as far as there is room without giving up one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.errors import UserError
from harness.instances import Instance
from harness.sandbox.images.estimates import EXPANSION, estimate_layers
from harness.sandbox.images.shelf import Layer, Shelf
from harness.sizes import format_size

HUB_PULLS, HUB_HOURS = 100, 6
"""Docker Hub lets an anonymous address pull this many images in this many hours (its documentation, "usage limits")."""

Layers = Mapping[str, tuple[Layer, ...]]


@dataclass(frozen=True)
class Event:
    """A step of the plan: `pull` or `evict`, with the bytes that come or go on the disk, and the total after it."""

    kind: str
    instance_id: str
    size: int
    total: int


@dataclass
class Plan:
    """What bringing the images of `order` costs. All `_bytes` are on the disk but `download_bytes`, compressed."""

    source: str
    budget: int | None
    unique_bytes: int = 0
    peak_bytes: int = 0
    pulled_bytes: int = 0
    download_bytes: int = 0
    pulls: int = 0
    evictions: int = 0
    order: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def hub_hours(self) -> float:
        """Hours that Docker Hub's anonymous limit stretches the pulls to; the first allowance is there at once."""
        return max(0, (self.pulls - 1) // HUB_PULLS) * HUB_HOURS

    def as_json(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {**asdict(self), "hub_pull_limit": f"{HUB_PULLS} in {HUB_HOURS} h", "hub_hours": self.hub_hours}


def order_instances(instances: Sequence[Instance], layers: Layers | None = None) -> list[Instance]:
    """`instances` so that those that share the most layers follow one another, otherwise in their own order.

    `layers` by instance id, oldest layer first; estimated by repository and version where it says nothing.
    """
    known = layers or {}
    chains = {one.instance_id: known.get(one.instance_id) or estimate_layers(one) for one in instances}
    ranks: dict[str, int] = {}
    for one in instances:
        for layer in chains[one.instance_id]:
            ranks.setdefault(layer.key, len(ranks))
    return sorted(instances, key=lambda one: [ranks[layer.key] for layer in chains[one.instance_id]])


def simulate(
    instances: Sequence[Instance],
    layers: Layers,
    source: str,
    *,
    budget: int | None,
    prefetch: int = 2,
    workers: int = 4,
    passes: int = 1,
) -> Plan:
    """The plan for `instances` (those with an image), gone through `passes` times in the best order.

    Raises `UserError` where the images in use at once cannot fit the budget.
    """
    ordered = order_instances([one for one in instances if one.image is not None], layers) * passes
    plan = Plan(source, budget, order=[one.instance_id for one in ordered[: len(ordered) // passes]])
    everything = {layer.key: layer.size for one in ordered for layer in layers[one.instance_id]}
    plan.unique_bytes = sum(everything.values())
    shelf, limit = Shelf(), float("inf") if budget is None else float(budget)
    names = [one.instance_id for one in ordered]
    for position, name in enumerate(names):
        if position >= workers:
            shelf.release(names[position - workers])
        _bring(plan, shelf, name, layers, limit, spare=None)
        shelf.hold(name)
        ahead = names[position + 1 : position + 1 + prefetch]
        for count, later in enumerate(ahead):
            if not _bring(plan, shelf, later, layers, limit, spare=ahead[: count + 1]):
                break
    return plan


def render(plan: Plan, *, steps: bool = False) -> list[str]:
    """The plan as lines for a person; with `steps` every pull and eviction, too."""
    budget = "none" if plan.budget is None else format_size(plan.budget)
    lines = [
        f"layer sizes              {plan.source}",
        f"images                   {len(plan.order)}",
        f"disk budget              {budget}",
        f"all images, layers once  {format_size(plan.unique_bytes)}",
        f"most on the disk at once {format_size(plan.peak_bytes)}",
        f"unpacked by pulls        {format_size(plan.pulled_bytes)}",
        f"downloaded               {format_size(plan.download_bytes)} (compressed)",
        f"pulls                    {plan.pulls}, of which {plan.pulls - len(plan.order)} again",
        f"evictions                {plan.evictions}",
        f"from Docker Hub          {HUB_PULLS} anonymous pulls in {HUB_HOURS} h: at least {plan.hub_hours:g} h; "
        "a login raises that, a mirror (--registry) has none",
    ]
    if steps:
        lines += [f"{one.kind:5}  {one.instance_id:36} {format_size(one.size):>8}  total {format_size(one.total)}"
                  for one in plan.events]  # fmt: skip
    return lines


def _bring(plan: Plan, shelf: Shelf, name: str, layers: Layers, limit: float, spare: Sequence[str] | None) -> bool:
    """Bring one image; with `spare` only if there is room without giving up one of those."""
    if name in shelf:
        return True
    own = layers[name]
    victims = shelf.choose_victims(own, limit, spare or ())
    if victims is None:
        if spare is not None:
            return False
        held = len(shelf.held)
        raise UserError(
            f"--disk-budget {format_size(limit)}: too small for {name} ({format_size(sum(one.size for one in own))}) "
            f"beside {held} images in use; at least {format_size(_cost_with_held(shelf, own))} here, or fewer --workers"
        )
    for victim in victims:
        before = shelf.total()
        shelf.drop(victim)
        plan.evictions += 1
        plan.events.append(Event("evict", victim, before - shelf.total(), shelf.total()))
    size = shelf.missing(own)
    shelf.put(name, own, owned=True)
    plan.pulls += 1
    plan.pulled_bytes += size
    plan.download_bytes = int(plan.pulled_bytes / EXPANSION)
    plan.peak_bytes = max(plan.peak_bytes, shelf.total())
    plan.events.append(Event("pull", name, size, shelf.total()))
    return True


def _cost_with_held(shelf: Shelf, layers: Sequence[Layer]) -> int:
    held = shelf.held
    return shelf.total_with(layers, [name for name in shelf.names if name not in held])
