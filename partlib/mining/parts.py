"""Learnt parts: detectors that score any region, and what is asked of them."""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import _files
from .. import regions as boxes_
from .._checks import check_count
from ..encoding import bag_of_parts, part_descriptors, spatial_bag
from ..regions import Regions


class NothingFound(ValueError):
    """A learner found no part in these photographs; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Parts:
    """`p` part detectors: S_pr = ⟨u_p, x_r⟩ + t_p for the descriptor x_r of a region.

    For a learner that models a part as Gaussian, S is the logarithm of how much likelier the region is as the part than as
    anything else, so 0 is where the two are even; a detector trained otherwise has its own zero, its decision's.

    Args:
        filters: U. offsets: t.
        groups: for each part, the group of photographs it was learnt to tell from the rest; −1: none.
        weights: V, of each group of photographs on each part, where they were learnt together.
        about: what made them: the learner, its settings, the photographs.
    """

    filters: Float[Tensor, "p d"]
    offsets: Float[Tensor, "p"]
    groups: Int[np.ndarray, "p"] = None
    about: dict = field(default_factory=dict)
    weights: Float[Tensor, "c p"] | None = None

    def __post_init__(self):
        if self.groups is None:
            object.__setattr__(self, "groups", np.full(len(self.filters), -1))

    def __len__(self):
        return len(self.filters)

    def __getitem__(self, index):
        index = [index] if np.ndim(index) == 0 and not isinstance(index, slice) else index
        weights = None if self.weights is None else self.weights[:, index]
        return Parts(self.filters[index], self.offsets[index], self.groups[index], self.about, weights)

    def __repr__(self):
        return f"Parts({len(self)} by {self.about.get('learner', 'hand')}, on {self.filters.shape[1]} channels)"

    def score(self, regions: Regions | Float[Tensor, "n r d"]) -> Float[Tensor, "n p r"]:
        """S of every region of every photograph, all in memory."""
        return torch.cat(list(self.scores(regions)))

    def scores(self, regions: Regions | Float[Tensor, "n r d"]):
        """The same, a batch of photographs at a time, however many there are."""
        for x in regions.batches() if isinstance(regions, Regions) else regions.split(64):
            if x.shape[2] != self.filters.shape[1]:
                raise ValueError(
                    f"these parts were learnt on {self.filters.shape[1]} channels, the regions have {x.shape[2]}: "
                    "take the maps they were learnt on"
                )
            yield torch.einsum("nrd,pd->npr", x, self.filters.to(x)) + self.offsets.to(x)[:, None]

    def encode(self, regions: Regions, how="max") -> Float[Tensor, "n D"]:
        """Codes of all photographs, batch by batch.

        Args:
            how: "max", "mean" or "both", as in `encoding.bag_of_parts`; "spatial" or "descriptors" for
                `encoding.spatial_bag` and `encoding.part_descriptors`.
        """
        if how == "descriptors":
            return torch.cat([part_descriptors(x, next(self.scores(x))) for x in regions.batches()])
        if how == "spatial":
            return torch.cat([spatial_bag(scores, regions.boxes, regions.cells) for scores in self.scores(regions)])
        return torch.cat([bag_of_parts(scores, how) for scores in self.scores(regions)])

    def maps(self, maps) -> Float[Tensor, "n p h w"]:
        """S of every single cell: where in the photograph each part is, more finely than its regions."""
        cells = Regions(maps, boxes_.grid(*maps.shape[2:]))
        return self.score(cells).unflatten(2, cells.cells)

    # What kind of parts they are, on photographs, without any labels.

    def best(self, regions: Regions) -> tuple[Float[np.ndarray, "n p"], Int[np.ndarray, "n p"]]:
        """Each part's highest score in each photograph, and the number of the region that has it."""
        found = [scores.max(2) for scores in self.scores(regions)]
        return tuple(torch.cat([getattr(one, what) for one in found]).cpu().numpy() for what in ("values", "indices"))

    def presence(self, regions: Regions) -> Float[np.ndarray, "p"]:
        """The share of photographs in which some region scores above 0."""
        return self._present(regions).mean(0)

    def dead(self, regions: Regions) -> Int[np.ndarray, "q"]:
        """The parts that score above 0 in fewer than two photographs: they recur nowhere."""
        return np.flatnonzero(self._present(regions).sum(0) < 2)

    def _present(self, regions):
        return self.best(regions)[0] > 0

    def duplicates(self, regions: Regions) -> float:
        """The share of pairs of parts, in percent, whose best regions overlap (IoU over ½), averaged over photographs."""
        if len(self) < 2:
            return 0.0
        where = self.best(regions)[1]
        overlap = (boxes_.iou(regions.boxes, regions.boxes) > 0.5).numpy()
        upper = np.triu_indices(len(self), 1)
        return 100 * float(np.mean([overlap[np.ix_(row, row)][upper].mean() for row in where]))

    def members(
        self, regions: Regions, count=8
    ) -> tuple[Int[np.ndarray, "p m"], Int[np.ndarray, "p m"], Float[np.ndarray, "p m"]]:
        """For the gallery: the photographs that answer most strongly to each part, the region in each, and its score."""
        scores, where = self.best(regions)
        count = check_count(min(count, len(scores)), len(scores), "members", "photographs")
        first = (-scores).argsort(0, kind="stable")[:count].T
        part = np.arange(len(self))[:, None]
        return first, where[first, part], scores[first, part]

    # Files.

    def save(self, file):
        """Write them to a .safetensors file: arrays and a line of JSON, nothing that could run."""
        tensors = {"filters": self.filters, "offsets": self.offsets, "groups": torch.from_numpy(np.asarray(self.groups))}
        tensors |= {} if self.weights is None else {"weights": self.weights}
        _files.write(file, tensors, self.about, "parts")

    @classmethod
    def load(cls, file) -> "Parts":
        """Parts that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, or holds something else.
        """
        return _files.read(file, "parts", lambda t, about: cls(t["filters"], t["offsets"], t["groups"].numpy(), about, t.get("weights")))


def made_by(learner, regions: Regions) -> dict:
    """For `Parts.about`: a learner's name and settings, as JSON takes them, and what it learnt from."""
    settings = {name: _plain(value) for name, value in asdict(learner).items()}
    return {"learner": type(learner).__name__, **settings, "photographs": len(regions), "regions": len(regions.boxes)}


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (int, float, str)) else getattr(value, "__name__", str(value))
