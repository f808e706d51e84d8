"""What is trained for: right classes, codes near those of neighbours, or near their cluster's centroid; the last block of the backbone too."""

import torch
from torch.nn import functional as F

from .. import heads, training
from ..clustering import KMeans
from ..encoding import gem
from ..whitening import NeighbourWhitening, nearest
from .cells import foreground

# Further terms of the loss by name: of the head, and of which cell is of which part in a batch, and in its mirrored pictures.
TERMS = {
    "orthogonality": lambda head, assigned, mirrored: heads.orthogonality(head.filters.weight.flatten(1)) * head.parts,
    "shared_use": lambda head, assigned, mirrored: heads.shared_use(head.classes.weight),
    "indecision": lambda head, assigned, mirrored: heads.indecision(assigned),
    "imbalance": lambda head, assigned, mirrored: heads.imbalance(assigned),
    "spread": lambda head, assigned, mirrored: heads.spread(assigned[:, : head.parts]),
    "absence": lambda head, assigned, mirrored: heads.absence(assigned[:, : head.parts]),
    "inequivariance": lambda head, assigned, mirrored: heads.inequivariance(assigned, mirrored),
}


class _OnMaps(training.Task):
    """A head on maps in memory, by the numbers of the photographs. The maps are no buffers: a checkpoint holds what is learnt."""

    def __init__(self, head, seen, losses):
        super().__init__()
        unknown = set(losses) - set(TERMS)
        if unknown:
            raise ValueError(f"there is no loss {unknown.pop()!r}: further terms are {', '.join(TERMS)}")
        if "inequivariance" in losses and len(seen) < 2:
            raise ValueError("inequivariance compares with mirrored photographs, so give their maps too: views=[extract(backbone, mirrored(photos))]")
        self.head, self.seen, self.losses = head, seen, losses

    def __len__(self):
        return len(self.seen[0])

    def further(self, rows):
        """The further terms, weighed."""
        of_cells = any(name not in ("orthogonality", "shared_use") for name in self.losses)
        assigned = self.head.assignments(self.seen[0][rows]) if of_cells else None
        mirrored = self.head.assignments(self.seen[1][rows]) if "inequivariance" in self.losses else None
        return {name: weight * TERMS[name](self.head, assigned, mirrored) for name, weight in self.losses.items()}

    def end(self, epoch):
        some = self.seen[0][:: max(1, len(self) // 100)]
        found = heads.diagnose(self.head, some, foreground(some))
        self.head.train()
        return found


class WithLabels(_OnMaps):
    """Cross-entropy of the right classes."""

    def __init__(self, head, seen, labels, losses):
        super().__init__(head, seen, losses)
        self.labels = labels

    def draw(self, rows, generator):
        return rows, torch.randint(len(self.seen), (len(rows),), generator=generator)

    def forward(self, rows, view):
        maps = pick(self.seen, rows, view)
        return {"classes": F.cross_entropy(self.head(maps), self.labels[rows])} | self.further(rows)

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
        codes, partners = training.gathered(self.codes(maps)), training.gathered(self.codes(pick(self.seen, others, view)))
        known = self.alike(training.gathered(rows), training.gathered(others))
        return {"contrast": heads.contrast(codes, partners, known, self.temperature)} | self.further(rows)

    def alike(self, rows, others):
        """Which are one photograph, or each among the other's neighbours."""
        there = (self.near[rows][:, :, None] == others).any(1)
        back = (self.near[others][:, :, None] == rows).any(1).T
        return (there & back) | (rows[:, None] == others)


class _Pooled(torch.nn.Module):
    """The last block and GeM: a photograph's code is what the mean of each channel says, as if each were a part."""

    def __init__(self, block, channels):
        super().__init__()
        self.block, self.parts = block, channels

    def bag(self, maps):
        return gem(self.block(maps))


class LastBlock(WithNeighbours):
    """The backbone's last block, by the same contrast: neighbours are looked for in whitened codes, which name more of them rightly."""

    def __init__(self, block, channels, seen, neighbours, temperature):
        super().__init__(_Pooled(block, channels), seen, {}, neighbours, temperature)

    def look(self, codes, generator):
        whitening = NeighbourWhitening(neighbours=self.near.shape[1])
        return super().look(whitening.fit(codes).transform(codes), generator)

    def end(self, epoch):
        return {}


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
        return {"clusters": F.cross_entropy(cosines / self.temperature, self.labels[rows])} | self.further(rows)


def pick(seen, rows, view):
    """Each photograph's map in its view."""
    if len(seen) == 1:
        return seen[0][rows]
    return torch.stack([seen[v][row] for row, v in zip(rows.tolist(), view.tolist())])
