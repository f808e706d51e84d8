"""The part network as an estimator: part filters on the maps of a fixed backbone, learnt from the photographs alone, or with labels.

Without labels a photograph's code is to be near those of its neighbours, which are the nearest codes of the epoch before; or in the
cluster that it had. Either way what learns is light: p filters of d channels.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from . import heads, training
from ._checks import check_count, check_labels, check_maps
from .clustering import KMeans
from .encoding import encode, join, rmac
from .features import Maps
from .heads import PartHead
from .mining import NothingFound, Parts
from .whitening import NeighbourWhitening, nearest

SAMPLE = 20_000  # cells from which the strongest directions and the first filters come


@dataclass
class PartNet:
    """Parts learnt end to end on cached maps, with or without labels, and what they are used for.

    Args:
        parts: p. pool: of the head: "gem", "max", "mean" or "softmax". sizes, presence, background, norm: as in `heads.PartHead`.
        how: without labels: "neighbours" (contrast with mined neighbours) or "clusters" (pseudo-labels of the epoch's k-means).
        neighbours: how many nearest codes a photograph takes for its kind. clusters: k of "clusters".
        epochs, batch, rate: of the training, by Adam. temperature: τ of both losses.
        losses: weights of further terms, by the names of functions of `heads`.
        within: filters are sought in so many of the cells' strongest directions; exact, they are filters on all channels in the end.
        dims: of the code that `encode` gives.
        seed: of whatever is drawn.

    Attributes after `fit`: `head_` (PartHead), `history_` (one dict an epoch), `whitening_` (of codes), `classes_` (with labels).
    """

    parts: int = 256
    pool: str = "gem"
    sizes: Sequence[int] = (1,)
    presence: bool = False
    background: bool = False
    norm: bool = False
    how: str = "neighbours"
    neighbours: int = 5
    clusters: int = 40
    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    temperature: float = 0.1
    losses: tuple = (("orthogonality", 1.0),)
    within: int = 384
    dims: int = 128
    seed: int = 0

    def fit(self, maps: Maps | Float[Tensor, "n d h w"], labels=None, views: Sequence = (), start: Parts | None = None, checkpoint=None):
        """Learn the parts of these photographs.

        Args:
            maps: of the training photographs alone. labels: `(n,)` class numbers, to learn with them.
            views: maps of the same photographs seen otherwise (`data.mirrored`, `data.cropped`).
            start: parts to start from, as many as `parts`; clusters of foreground cells by default.
            checkpoint: a file to go on from, as in `training.fit`.

        Raises:
            NothingFound: fewer than four photographs, or all cells alike.
        """
        n, d, h, w = maps.shape
        if n < 4:
            raise NothingFound(f"{n} photographs do not show what recurs: give four or more")
        labels = None if labels is None else check_labels(labels, n)
        subspace = Subspace.of(maps, self.within, self.seed)
        head = PartHead(
            subspace.dims, self.parts, 0 if labels is None else int(labels.max()) + 1, self.pool, self.sizes, presence=self.presence,
            background=self.background, norm=self.norm and labels is not None, seed=self.seed,
        )  # fmt: skip
        head.scale.fill_(subspace.scale)
        seen = [subspace.reduce(some) for some in (maps, *views)]
        with torch.no_grad():
            head.filters.weight[: self.parts] = self._first_filters(subspace, seen[0], start)[:, :, None, None]
        task = self._task(head, seen, labels)
        self.history_ = training.fit(task, self.epochs, self.batch, self.rate, checkpoint=checkpoint, seed=self.seed)
        self.head_ = subspace.unfold(head).eval().requires_grad_(False)
        self.classes_ = head.classes.out_features if labels is not None else 0
        self._learn_code(maps)
        return self

    def _first_filters(self, subspace, maps, start):
        if start is not None:
            if len(start) != self.parts:
                raise ValueError(f"{len(start)} parts to start from, but parts={self.parts}: make them as many")
            return F.normalize(start.filters @ subspace.basis, dim=1)
        cells = F.normalize(maps.permute(0, 2, 3, 1)[foreground(maps)], dim=1)
        drawn = cells[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(cells))[:SAMPLE])]
        if len(drawn) < self.parts:
            raise NothingFound(f"{self.parts} parts, but only {len(drawn)} cells on the foreground of {len(maps)} photographs: ask for fewer parts")
        # What all cells have in common tells no part from another; a tenth of it is left, so that filters still prefer objects.
        middles = KMeans(self.parts, spherical=True, iterations=10, seed=self.seed).fit(drawn).centroids_
        return F.normalize(middles - 0.9 * drawn.mean(0), dim=1)

    def _task(self, head, seen, labels):
        losses = dict(self.losses)
        if labels is not None:
            return WithLabels(head, seen, torch.from_numpy(labels), losses)
        if self.how == "neighbours":
            return WithNeighbours(head, seen, losses, min(self.neighbours, len(seen[0]) - 1), self.temperature)
        if self.how == "clusters":
            return WithClusters(head, seen, losses, check_count(min(self.clusters, len(seen[0]) // 2), len(seen[0]), "clusters", "photographs"), self.temperature)
        raise ValueError(f"how={self.how!r}: without labels a part network learns from 'neighbours' or 'clusters'")

    def _learn_code(self, maps):
        self.mean_ = F.normalize(self.bag(maps), dim=1).mean(0)
        pooled = _each(maps, rmac)
        self.pooled_mean_ = pooled.mean(0)
        self.whitening_ = NeighbourWhitening(self.dims, min(self.neighbours, len(maps) - 1)).fit(self.joined(maps))

    def bag(self, maps) -> Float[Tensor, "n p"]:
        """b: how much there is of each part in each photograph."""
        return _each(maps, self._learnt().bag)

    def joined(self, maps) -> Float[Tensor, "n p+d"]:
        """The centred bag next to centred R-MAC: the code before its whitening."""
        return join(F.normalize(self.bag(maps), dim=1) - self.mean_, _each(maps, rmac) - self.pooled_mean_)

    def encode(self, maps) -> Float[Tensor, "n dims"]:
        """Codes of length 1: `joined`, whitened by its neighbours among the training photographs."""
        return self.whitening_.transform(self.joined(maps))

    def predict(self, maps) -> Int[np.ndarray, "n"]:
        """The class of the highest logit, where it was learnt with labels."""
        return _each(maps, self._learnt()).argmax(1).cpu().numpy()

    def _learnt(self):
        if not hasattr(self, "head_"):
            raise ValueError("this part network knows no photographs yet: call fit(maps) first")
        return self.head_

    # Files.

    def save(self, file):
        """Write it to a .safetensors file: arrays and a line of JSON."""
        tensors = {f"head.{name}": value for name, value in self._learnt().state_dict().items()}
        tensors |= {"mean": self.mean_, "pooled_mean": self.pooled_mean_, "whitening.mean": self.whitening_.mean_, "whitening.projection": self.whitening_.projection_}
        file = Path(file)
        part = file.with_name(file.name + ".part")
        try:
            save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part, {"partnet": json.dumps(asdict(self) | {"classes": self.classes_})})
            os.replace(part, file)
        except (OSError, SafetensorError) as error:
            if part.exists():
                part.unlink()
            raise OSError(f"the part network could not be written to {file} ({error}): is there such a folder, and room on the disk?") from None

    @classmethod
    def load(cls, file) -> "PartNet":
        """A part network that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, or holds something else.
        """
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {file}: PartNet.save(file) writes one")
        try:
            with safe_open(file, "pt") as stored:
                about = json.loads(stored.metadata()["partnet"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}
            classes = about.pop("classes")
            net = cls(**{name: tuple(map(tuple, value)) if name == "losses" else value for name, value in about.items()})
            channels = tensors["head.filters.weight"].shape[1]
            net.head_ = PartHead(channels, net.parts, classes, net.pool, net.sizes, presence=net.presence, background=net.background, norm="head.norm.running_mean" in tensors)
            net.head_.load_state_dict({name[5:]: value for name, value in tensors.items() if name.startswith("head.")})
            net.head_.eval().requires_grad_(False)
            net.classes_, net.mean_, net.pooled_mean_ = classes, tensors["mean"], tensors["pooled_mean"]
            net.whitening_ = NeighbourWhitening(net.dims)
            net.whitening_.mean_, net.whitening_.projection_ = tensors["whitening.mean"], tensors["whitening.projection"]
        except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError):
            raise ValueError(f"{file} holds no part network, or is damaged: learn it again, or fetch the file again") from None
        return net


def _each(maps, function):
    """A function of maps, batch by batch."""
    with torch.no_grad():
        return encode(maps, function) if isinstance(maps, Maps) else function(check_maps(maps))


def foreground(maps: Float[Tensor, "n d h w"]) -> Bool[Tensor, "n h w"]:
    """Which cells are of an object rather than of its surroundings, guessed: the side of the first principal component of unit cells
    that the border of the pictures has less of [as in Amir et al. 2021 and Oquab et al. 2024, for transformers]."""
    cells = F.normalize(check_maps(maps), dim=1)
    mean = cells.mean((0, 2, 3), keepdim=True)
    flat = (cells - mean).permute(0, 2, 3, 1).flatten(0, 2)
    side = torch.linalg.eigh((flat.T @ flat).double())[1][:, -1].to(maps.dtype)
    values = torch.einsum("ndhw,d->nhw", cells - mean, side)
    border = torch.ones(values.shape[1:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    inside = values[:, ~border].mean() if (~border).any() else values.mean()
    return values * torch.sign(inside - values[:, border].mean()) > 0


@dataclass(frozen=True)
class Subspace:
    """The cells' strongest directions, in which filters are learnt: ⟨u, Bᵀx⟩ = ⟨B u, x⟩, so nothing is lost when they are unfolded."""

    basis: Float[Tensor, "d q"]
    scale: float

    @classmethod
    def of(cls, maps, dims: int, seed=0):
        """From the cells of at most some hundred photographs."""
        n, d, h, w = maps.shape
        rows = np.sort(np.random.default_rng(seed).permutation(n)[: max(1, SAMPLE // (h * w))])
        some = maps[rows].tensor() if isinstance(maps, Maps) else maps[torch.from_numpy(rows)]
        cells = check_maps(some).permute(0, 2, 3, 1).flatten(0, 2)
        lengths = cells.norm(dim=1)
        if not torch.isfinite(cells).all():
            raise ValueError("the maps hold NaN or infinity: mend what made them")
        if (cells - cells.mean(0)).norm(dim=1).max() <= 1e-5 * lengths.max().clamp(min=1e-12):
            raise NothingFound(f"all cells of these {n} photographs are alike, so no part can be told from another: are the maps constant?")
        strongest = torch.linalg.eigh((cells.T @ cells).double())[1].flip(1)[:, : min(dims, d)]
        return cls(strongest.float(), float(lengths.mean()))

    @property
    def dims(self):
        return self.basis.shape[1]

    def reduce(self, maps) -> Float[Tensor, "n q h w"]:
        """Maps in these directions."""
        return _each(maps, lambda some: torch.einsum("ndhw,dq->nqhw", some, self.basis))

    def unfold(self, head: PartHead) -> PartHead:
        """The same head on all channels."""
        weight = torch.einsum("pqhw,dq->pdhw", head.filters.weight.detach(), self.basis)
        head.filters = torch.nn.Conv2d(weight.shape[1], len(weight), 1, bias=False)
        head.filters.weight.data = weight.contiguous()
        return head


# The three tasks.


class _OnMaps(training.Task):
    """A head on maps in memory, by the numbers of the photographs. The maps are no buffers: a checkpoint holds what is learnt."""

    def __init__(self, head, seen, losses):
        super().__init__()
        unknown = set(losses) - set(TERMS)
        if unknown:
            raise ValueError(f"there is no loss {unknown.pop()!r}: further terms are {', '.join(TERMS)}")
        self.head, self.seen, self.losses = head, seen, losses

    def __len__(self):
        return len(self.seen[0])

    def further(self, maps):
        """The further terms, weighed."""
        of_cells = any(name not in ("orthogonality", "shared_use") for name in self.losses)
        assigned = self.head.assignments(maps) if of_cells else None
        return {name: weight * TERMS[name](self.head, maps, assigned) for name, weight in self.losses.items()}

    def end(self, epoch):
        some = self.seen[0][:: max(1, len(self) // 100)]
        found = heads.diagnose(self.head, some, foreground(some))
        self.head.train()
        return found


TERMS = {
    "orthogonality": lambda head, maps, assigned: heads.orthogonality(head.filters.weight.flatten(1)) * head.parts,
    "shared_use": lambda head, maps, assigned: heads.shared_use(head.classes.weight),
    "indecision": lambda head, maps, assigned: heads.indecision(assigned),
    "imbalance": lambda head, maps, assigned: heads.imbalance(assigned),
    "spread": lambda head, maps, assigned: heads.spread(assigned[:, : head.parts]),
    "absence": lambda head, maps, assigned: heads.absence(assigned[:, : head.parts]),
    "inequivariance": lambda head, maps, assigned: heads.inequivariance(assigned, head.assignments(maps.flip(3))),
}


class WithLabels(_OnMaps):
    """Cross-entropy of the right classes."""

    def __init__(self, head, seen, labels, losses):
        super().__init__(head, seen, losses)
        self.labels = labels

    def draw(self, rows, generator):
        return rows, torch.randint(len(self.seen), (len(rows),), generator=generator)

    def forward(self, rows, view):
        maps = _pick(self.seen, rows, view)
        return {"classes": F.cross_entropy(self.head(maps), self.labels[rows])} | self.further(maps)

    def groups(self):
        weights = list(self.head.classes.parameters())
        own = {id(p) for p in weights}
        return [{"params": [p for p in self.parameters() if id(p) not in own]}, {"params": weights, "scale": 10.0}]


class _Unlabelled(_OnMaps):
    """Codes of the moment: unit bags, centred at the mean of the epoch's beginning, unit again."""

    def __init__(self, head, seen, losses, temperature):
        super().__init__(head, seen, losses)
        self.temperature = temperature
        self.register_buffer("mean", torch.zeros(head.parts))

    def codes(self, maps):
        return F.normalize(F.normalize(self.head.bag(maps), dim=1) - self.mean, dim=1)

    def begin(self, epoch, generator):
        with torch.no_grad():
            bags = torch.cat([F.normalize(self.head.bag(some), dim=1) for some in self.seen[0].split(200)])
            self.mean.copy_(bags.mean(0))
            return self.look(F.normalize(bags - self.mean, dim=1), generator)


class WithNeighbours(_Unlabelled):
    """Contrast: a photograph and one of its nearest are a pair, against the rest of the batch; mutual neighbours are not pushed apart.

    Where there are other views of the photographs, one pair in five is a photograph and another view of itself.
    """

    def __init__(self, head, seen, losses, neighbours, temperature):
        super().__init__(head, seen, losses, temperature)
        self.register_buffer("near", torch.zeros(len(self), neighbours, dtype=torch.long))

    def look(self, codes, generator):
        self.near.copy_(nearest(codes, self.near.shape[1]))
        return []

    def draw(self, rows, generator):
        chosen = torch.randint(self.near.shape[1], (len(rows), 1), generator=generator)
        others, view = self.near[rows].gather(1, chosen)[:, 0], torch.zeros_like(rows)
        if len(self.seen) > 1:
            itself = torch.rand(len(rows), generator=generator) < 0.2
            view = torch.where(itself, torch.randint(1, len(self.seen), (len(rows),), generator=generator), view)
            others = torch.where(itself, rows, others)
        return rows, others, view

    def forward(self, rows, others, view):
        maps = self.seen[0][rows]
        codes, partners = self.codes(maps), self.codes(_pick(self.seen, others, view))
        rows, others = training.gathered(rows), training.gathered(others)
        return {"contrast": heads.contrast(training.gathered(codes), training.gathered(partners), self.alike(rows, others), self.temperature)} | self.further(maps)

    def alike(self, rows, others):
        """Which are one photograph, or each among the other's neighbours."""
        there = (self.near[rows][:, :, None] == others).any(1)
        back = (self.near[others][:, :, None] == rows).any(1).T
        return (there & back) | (rows[:, None] == others)


class WithClusters(_Unlabelled):
    """Pseudo-labels: the clusters of the epoch's codes, their centroids the prototypes that the epoch starts from [as DeepCluster-v2]."""

    def __init__(self, head, seen, losses, clusters, temperature):
        super().__init__(head, seen, losses, temperature)
        self.prototypes = torch.nn.Linear(head.parts, clusters, bias=False)
        self.register_buffer("labels", torch.zeros(len(self), dtype=torch.long))

    def look(self, codes, generator):
        found = KMeans(len(self.prototypes.weight), spherical=True, seed=int(torch.randint(2**31, (1,), generator=generator))).fit(codes)
        self.prototypes.weight.copy_(found.centroids_)
        self.labels.copy_(torch.from_numpy(found.labels_))
        return [self.prototypes.weight]

    def forward(self, rows):
        maps = self.seen[0][rows]
        cosines = self.codes(maps) @ F.normalize(self.prototypes.weight, dim=1).T
        return {"clusters": F.cross_entropy(cosines / self.temperature, self.labels[rows])} | self.further(maps)


def _pick(seen, rows, view):
    """Each photograph's map in its view."""
    if len(seen) == 1:
        return seen[0][rows]
    return torch.stack([seen[v][row] for row, v in zip(rows.tolist(), view.tolist())])
