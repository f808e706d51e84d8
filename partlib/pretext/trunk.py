"""The network that learns: any module from pictures to maps, as a `Backbone` is; here a small one that starts from nothing."""

from typing import Callable, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from .. import training
from ..encoding import gap


class Front(nn.Module):
    """What a convolution is given of a picture: its colours around 0, or its edges.

    Args:
        sobel: in place of the three colours, the two derivatives of their mean by Sobel's filters, which are fixed: then nothing can be
            learnt from colour alone [Caron et al. 2018, section 4].
    """

    def __init__(self, sobel=False):
        super().__init__()
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
        self.sobel = sobel
        self.register_buffer("filters", torch.stack([across, across.T])[:, None], persistent=False)

    def forward(self, pictures: Float[Tensor, "n 3 H W"] | UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n d H W"]:
        """Values from 0 to 1, or 8-bit ones, → what the first convolution takes."""
        values = (pictures / 255 if pictures.dtype == torch.uint8 else pictures) * 4 - 2  # about 0, of spread about 1
        if not self.sobel:
            return values
        grey = nn.functional.pad(values.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        return nn.functional.conv2d(grey, self.filters)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over the whole batch: where several processes share it, they learn what one would."""

    def forward(self, x: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
        """Each channel at mean 0 and spread 1 over the whole batch, then scaled and shifted."""
        if not (self.training and training.several()):
            return super().forward(x)
        per_channel = lambda values: training.summed(values.sum((0, 2, 3)))
        count = per_channel(torch.ones_like(x[:, :1]))
        mean = per_channel(x) / count
        variance = per_channel((x - mean[:, None, None]).square()) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


def convnet(channels: Sequence[int] = (24, 48, 64, 64, 64), sobel=False, seed=0) -> nn.Sequential:
    """AlexNet in small: blocks of a convolution, a batch norm and a ReLU; the first three halve the picture, so the stride is 8.

    `convnet()[: 1 + l]` is the network up to its block l, with the same weights: what `codes` takes to look at a layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks, before = [Front(sobel)], 2 if sobel else 3
        for number, after in enumerate(channels):
            width, stride = (5, 2) if number == 0 else (3, 2 if number < 3 else 1)
            convolution = nn.Conv2d(before, after, width, stride, padding=width // 2, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            blocks.append(nn.Sequential(convolution, BatchNorm(after), nn.ReLU()))
            before = after
    return nn.Sequential(*blocks).to(memory_format=torch.channels_last)


@torch.no_grad()
def codes(trunk: nn.Module, pictures: Tensor, pool: Callable = gap, batch=128) -> Float[Tensor, "n d"]:
    """Pooled maps of pictures (or of whatever else the trunk takes), in evaluation mode; the trunk's mode is as it was, afterwards."""
    device = next(iter([*trunk.parameters(), *trunk.buffers()])).device
    modes = {module: module.training for module in trunk.modules()}
    trunk.eval()
    try:
        return torch.cat([pool(trunk(some.to(device))).cpu() for some in pictures.split(batch)])
    finally:
        for module, mode in modes.items():
            module.training = mode
