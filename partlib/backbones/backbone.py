"""The one class: pictures in, maps out."""

import hashlib

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as pictures

from .layers import before_stride, between, choose, cut, find_maps, keep_exact, own_classifier
from .networks import Blocks, geometry, load


class Backbone(nn.Module):
    """A network up to one of its layers: pictures `(n, 3, H, W)` in, maps `(n, d, h, w)` out.

    Args:
        name: a packaged, torchvision or DINO network.
        layer: the layer whose output is the map: its name, or a stride in pixels (the last layer of that stride).
            The last map before the network's pooling by default. A wrong name is answered with near ones.
        size: side in pixels to which `prepare` stretches a picture. The whole picture is kept, its proportions are not.
        pretrained: official weights. True takes the newest, which torchvision's models load by default; a name takes
            others of torchvision's ("IMAGENET1K_V1": those most papers used); False draws random ones from `seed`.
        trainable: whether gradients reach the weights. A frozen backbone stays in evaluation mode.

    Attributes:
        channels (int): `d`.
        stride (int): pixels between neighbouring cells of the map.
        layer (str): the name of the layer taken.
        layers (dict): what could be taken: name → (channels, stride).
        classifier (nn.Linear or None): the network's own last layer, where its logits are exactly
            `classifier(maps.mean((2, 3)))`; CAM needs this. None for other networks and earlier layers.
        categories (list): the names of the classifier's classes.
    """

    def __init__(self, name="efficientnet_lite0", layer=None, size=256, pretrained=True, trainable=False, seed=0):
        super().__init__()
        self._weights = pretrained, seed
        network, mean, std, self.interpolation = self._load(name, size)
        self.name, self.size, self.trainable = name, size, trainable
        self.patch, self.fixed_size = geometry(network, name, size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

        network.eval()
        noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        maps, logits = find_maps(network, (noise - self.mean) / self.std, name, self.patch)
        self.layers = {node: (channels, stride) for node, (channels, stride, _) in maps.items()}
        self.layer = choose(layer, self.layers, name)
        self.channels, self.stride, self._layout = maps[self.layer]
        self.network = cut(network, self.layer, frozen=not trainable).eval()
        keep_exact(self.network, before_stride(8, self.layers))
        self.network.requires_grad_(trainable)
        self.to(memory_format=torch.channels_last)  # two to three times as fast on a CPU, the same numbers
        with torch.no_grad():
            self.classifier, self.categories = own_classifier(network, self(noise), logits)
        self.train(trainable)

    def forward(self, images: Float[Tensor, "n 3 H W"] | UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n d h w"]:
        """Maps of pictures of any size, as `prepare` makes them: 8-bit values 0 to 255, or floats 0 to 1."""
        if not (isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3):
            given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"a backbone takes pictures as a tensor (n, 3, H, W), not {given}: backbone.prepare(picture)[None]")
        height, width = images.shape[-2:]
        if self.fixed_size and (height, width) != (self.size, self.size):
            raise ValueError(f"this {self.name} takes {self.size} x {self.size} pixels, not {height} x {width}: Backbone(size=…) sets it")
        if height % self.patch or width % self.patch:
            raise ValueError(f"{self.name} takes heights and widths that are multiples of {self.patch}, not {height} x {width}")
        if images.dtype == torch.uint8:
            images = images / 255
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        output = self.network(images)
        if self._layout == "tokens":  # a class token, then one token a patch, row by row
            return output[:, 1:].transpose(1, 2).unflatten(2, (height // self.stride, width // self.stride))
        return output.permute(0, 3, 1, 2) if self._layout == "channels last" else output

    def after(self, layer) -> nn.Module:
        """The rest of the network, from the maps of a layer to this backbone's: what `Backbone(name, layer, size)` leaves to be done.

        For training the last layers on cached maps: `maps = extract(Backbone(name, layer, size), photos)`, and `backbone.after(layer)(maps)`
        are this backbone's maps. Its weights are its own, of the same start; batch norms are folded into convolutions, as they were trained.

        Raises:
            ValueError: there is no such layer, or what follows it reads earlier ones too.
        """
        network = self._load(self.name, self.size)[0].eval()
        if isinstance(network, Blocks) or self._layout != "channels first":
            raise ValueError(f"{self.name} is taken whole: only convolutional networks are cut in two")
        start, nodes = choose(layer, self.layers, self.name), list(self.layers)
        if nodes.index(start) >= nodes.index(self.layer):
            raise ValueError(f"{start!r} does not come before {self.layer!r}, this backbone's layer: take an earlier one")
        return between(network, start, self.layer, self.name).eval().requires_grad_(True)

    def _load(self, name, size):
        pretrained, seed = self._weights
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return load(name, size, pretrained)

    def prepare(self, picture: Image.Image) -> UInt8[Tensor, "3 size size"]:
        """A picture, stretched to `size` x `size`, as the network wants it."""
        if not isinstance(picture, Image.Image):
            raise TypeError(f"prepare takes a picture (PIL.Image), not {type(picture).__name__}: partlib.data.read_picture(path) reads one")
        return pictures.pil_to_tensor(pictures.resize(picture.convert("RGB"), [self.size, self.size], self.interpolation))

    def train(self, mode=True):
        """Training mode, for a trainable backbone; a frozen one keeps its batch statistics."""
        return super().train(mode and self.trainable)

    @property
    def fingerprint(self):
        """A digest of all that the maps depend on: weights, layer, size and preprocessing."""
        digest = hashlib.sha256(repr((self.name, self.layer, self.size, str(self.interpolation))).encode())
        for key, tensor in [("mean", self.mean), ("std", self.std), *self.network.state_dict().items()]:
            digest.update(key.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self):
        return f"Backbone({self.name}, layer={self.layer}, channels={self.channels}, stride={self.stride}, size={self.size})"
