"""Fine-tuning: the end of a backbone learns with labels, together with a linear layer."""

from copy import deepcopy
from typing import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .. import training
from .._checks import check_labels
from ..features import Maps
from ..partnet.tasks import pick


class FineTuning(training.Task):
    """Cross-entropy; each photograph is drawn in one of its views. The new layer has ten times the rate of what was learnt before."""

    def __init__(self, network, views, labels):
        super().__init__()
        self.network, self.views, self.labels = network, views, labels

    def __len__(self):
        return len(self.labels)

    def draw(self, rows, generator):
        return rows, torch.randint(len(self.views), (len(rows),), generator=generator)

    def forward(self, rows, view):
        return {"classes": F.cross_entropy(self.network(pick(self.views, rows, view)), self.labels[rows])}

    def groups(self):
        return [{"params": list(self.network[:-1].parameters())}, {"params": list(self.network[-1].parameters()), "scale": 10.0}]


def fine_tune(
    block: nn.Module, channels: int, views: Sequence[Maps | Float[Tensor, "n d h w"]], labels: Int[Tensor, "n"], epochs=10, batch=64, rate=3e-4, seed=0
) -> nn.Sequential:
    """A classifier of maps: the rest of a backbone, the mean over cells, and a linear layer. `network[:-1]` gives codes.

    Args:
        block: `Backbone.after(layer)`; a copy of it learns. channels: of the maps that it ends in.
        views: maps of that layer of the same photographs, as they are and seen otherwise (`data.mirrored`, `data.cropped`).
        labels: class numbers. epochs, batch, rate: of the training, by Adam. seed: of the order of photographs and views.
    """
    labels = torch.from_numpy(check_labels(labels, len(views[0])))
    layer = nn.Linear(channels, int(labels.max()) + 1)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)  # no class is ahead before anything is seen
    network = nn.Sequential(deepcopy(block), nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer).requires_grad_(True)
    views = [view.tensor() if isinstance(view, Maps) else view for view in views]
    training.fit(FineTuning(network, views, labels), epochs, batch, rate, seed=seed)
    return network.eval().requires_grad_(False)
