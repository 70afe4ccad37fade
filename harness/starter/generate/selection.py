"""Which generated instances make up `starter-500`."""

from collections import Counter
from collections.abc import Iterator
from itertools import count

from harness.starter.generate.assembly import assemble
from harness.starter.generate.families import FAR, KNOWN
from harness.starter.generate.instance import GeneratedInstance

SIZES = {"near": 200, "mixed": 200, "far": 100}
FIRST_SEEDS = {"near": 1_000_000, "mixed": 2_000_000, "far": 3_000_000}
_ORDER = ("near", "mixed", "near", "mixed", "far")
_KIND_SHARE = 0.12


def select_instances() -> list[GeneratedInstance]:
    """200 near, 200 mixed and 100 far instances, mixed so that every stretch of five has two, two and one of them.

    Within a part, seeds are tried in order; one that would give its family or its kind of bug too large a share, or
    an issue that is there already, is left out.
    """
    parts = {part: _select_part(part) for part in SIZES}
    return [next(parts[part]) for _ in range(SIZES["far"]) for part in _ORDER]


def _select_part(part: str) -> Iterator[GeneratedInstance]:
    families: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    texts: set[str] = set()
    most = -(-SIZES[part] * 3 // (2 * len(FAR if part == "far" else KNOWN)))
    for seed in count(FIRST_SEEDS[part]):
        instance = assemble(seed, part)
        crowded = families[instance.family] >= most or kinds[instance.kind] >= SIZES[part] * _KIND_SHARE
        if crowded or instance.problem_statement in texts:
            continue
        families[instance.family] += 1
        kinds[instance.kind] += 1
        texts.add(instance.problem_statement)
        yield instance
