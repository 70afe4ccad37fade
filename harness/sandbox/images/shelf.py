"""Which images are here, what their layers cost, and which to give up: the policy, without a daemon.

An image is a set of layers, and a layer that several images share lies on the disk once. Giving up an image frees only
the layers that no other image here needs, so its cost is always counted over all images together. Least recently used
images go first; those that are held never go, nor those that were here before us.

The supply and `sweq images plan` both decide with this class, so the plan shows what a run does.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A layer by `key` (a digest, or a name in the table of estimates) and its bytes on the disk."""

    key: str
    size: int


class Shelf:
    """The images that are here, least recently used first."""

    def __init__(self) -> None:
        self._images: dict[str, tuple[Layer, ...]] = {}
        self._owned: set[str] = set()
        self._holds: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self._images

    @property
    def names(self) -> list[str]:
        """All images, least recently used first."""
        return list(self._images)

    @property
    def held(self) -> list[str]:
        """The images that must stay."""
        return [name for name in self._images if self._holds[name]]

    @property
    def owned(self) -> list[str]:
        """The images that may be given up when nobody holds them, least recently used first."""
        return [name for name in self._images if name in self._owned]

    def put(self, name: str, layers: Iterable[Layer], *, owned: bool) -> None:
        """Add an image, or say anew what its layers are; it counts as used now.

        Layers of an image that is not `owned` cost nothing: they would be here without us.
        """
        kept = tuple(layers) if owned else tuple(Layer(layer.key, 0) for layer in layers)
        self._images.pop(name, None)
        self._images[name] = kept
        self._owned.discard(name)
        if owned:
            self._owned.add(name)

    def drop(self, name: str) -> None:
        """Forget an image."""
        self._images.pop(name, None)
        self._owned.discard(name)

    def hold(self, name: str) -> None:
        """Keep an image until `release`; holds add up."""
        self._holds[name] += 1
        self._touch(name)

    def release(self, name: str) -> None:
        """Undo one `hold`."""
        self._holds[name] -= 1
        self._touch(name)

    def total(self) -> int:
        """Bytes of all layers here, each counted once."""
        return _cost(self._images.values())

    def total_with(self, layers: Sequence[Layer], without: Collection[str] = ()) -> int:
        """Bytes if `layers` came and the images `without` went."""
        return _cost([*(own for name, own in self._images.items() if name not in without), layers])

    def missing(self, layers: Sequence[Layer], without: Collection[str] = ()) -> int:
        """Bytes of those of `layers` that no image here has, once the images `without` are gone."""
        here = {layer.key for name, own in self._images.items() if name not in without for layer in own}
        return sum(layer.size for layer in layers if layer.key not in here)

    def choose_victims(self, layers: Sequence[Layer], limit: float, spare: Collection[str] = ()) -> list[str] | None:
        """The images to give up so that everything with `layers` costs at most `limit` bytes, in order of their going.

        None when even giving up all that is owned, not held and not in `spare` would not do.
        """
        victims: list[str] = []
        candidates = [name for name in self.owned if not self._holds[name] and name not in spare]
        while self.total_with(layers, victims) > limit:
            if len(victims) == len(candidates):
                return None
            victims.append(candidates[len(victims)])
        return victims

    def _touch(self, name: str) -> None:
        if name in self._images:
            self._images[name] = self._images.pop(name)


def _cost(images: Iterable[Sequence[Layer]]) -> int:
    """A layer costs the least that any image says: nothing where an image that is not ours has it, too."""
    sizes: dict[str, int] = {}
    for layers in images:
        for layer in layers:
            sizes[layer.key] = min(layer.size, sizes.get(layer.key, layer.size))
    return sum(sizes.values())
