"""In which order the tasks of a run are done: fair to every level, whenever the run is stopped.

The same (repeat, instance) is done at every level before the next one begins, as far as the levels' servers can be up
together. Where they cannot, the levels take turns: a turn is one block of instances at one group of levels, and every
other block goes through the groups backwards, so that the group that ended a block begins the next one and its servers
need no new start. An early stop thus leaves whole blocks behind in which all levels answered the same instances.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from harness.config import LevelConfig, RunConfig
from harness.instances import Instance


@dataclass(frozen=True)
class Turn:
    """Work for which the servers of `levels` are up together: each (repeat, instance), in order, at every level."""

    levels: tuple[LevelConfig, ...]
    work: tuple[tuple[int, Instance], ...]


def plan_turns(config: RunConfig, instances: Sequence[Instance]) -> list[Turn]:
    """The turns of a whole run; two that follow each other have different levels."""
    at_once = count_levels_at_once(config)
    size = config.block or len(instances) or 1
    groups = [config.levels[start : start + at_once] for start in range(0, len(config.levels), at_once)]
    turns: list[Turn] = []
    for repeat in range(config.repeats):
        for start in range(0, len(instances), size):
            work = tuple((repeat, instance) for instance in instances[start : start + size])
            turns += [Turn(group, work) for group in groups]
            groups.reverse()
    return list(_join(turns))


def count_levels_at_once(config: RunConfig) -> int:
    """How many levels' servers are up together: levels that share one machine's memory take turns unless told."""
    wanted = config.levels_at_once or (len(config.levels) if config.endpoint.kind == "url" else 1)
    return min(wanted, len(config.levels))


def _join(turns: Sequence[Turn]) -> Iterator[Turn]:
    """Neighbours of the same levels as one turn, within which nothing waits for a block to end."""
    for levels, same in groupby(turns, key=lambda turn: turn.levels):
        yield Turn(levels, tuple(pair for turn in same for pair in turn.work))
