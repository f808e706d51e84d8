"""Layers of a network: which of its outputs are maps, and the network cut behind one of them."""

import difflib
import math
import re

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor

from .networks import Blocks


@torch.no_grad()
def find_maps(network, images, name, patch):
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
    if isinstance(network, Blocks):
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


def choose(layer, layers, name):
    """The full name of the layer that the reader means by a name, by a stride, or by nothing."""
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
    return [node for node in before_stride(stride + 1, layers) if layers[node][1] == stride][-1]


def before_stride(stride, layers):
    """The outputs before the block in which maps first have at least this stride."""
    nodes = list(layers)
    coarser = next((node for node in nodes if layers[node][1] >= stride), None)
    if coarser is None:
        return nodes
    block = re.match(r"\D*\d[^.]*|.*", coarser).group()  # "layer4" of "layer4.0.conv2", "_blocks.11" of "_blocks.11._bn1"
    return [node for node in nodes[: nodes.index(coarser)] if not (node + ".").startswith(block + ".")]


def own_classifier(network, maps, logits):
    """The network's last linear layer, if on noise its logits are those of the pooled map; and its classes."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
    if not linear or maps.shape[1] != linear[0].in_features or logits.ndim != 2 or not logits.any():  # an untrained ViT gives 0
        return None, []
    if not torch.allclose(linear[0](maps.mean((2, 3))), logits, rtol=1e-3, atol=1e-4):
        return None, []
    return linear[0].requires_grad_(False), torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]


def cut(network, layer, frozen):
    """The network up to that layer, as a module of its own."""
    if isinstance(network, Blocks):
        return _OneBlock(network, layer)
    extractor = create_feature_extractor(network, {layer: "map"}, tracer_kwargs=_tracing(network), suppress_diff_warning=True)
    return _Single(_fold(extractor) if frozen else extractor)


def between(network, start, end, name):
    """The network from the output of one layer to that of another, as a module of its own: maps in, maps out."""
    tracer = NodePathTracer(**_tracing(network))
    rest = fx.GraphModule(network, tracer.trace(network))
    graph, nodes = rest.graph, {qualified: node for node, qualified in tracer.node_to_qualname.items()}
    pictures = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(pictures):
        maps = graph.placeholder("maps")
    nodes[start].replace_all_uses_with(maps)
    graph.erase_node(next(node for node in graph.nodes if node.op == "output"))
    graph.output(nodes[end])
    graph.eliminate_dead_code()
    if pictures.users:
        raise ValueError(f"what follows {start!r} in {name} reads earlier layers too: take the end of a block, as {name}'s last one of another stride")
    graph.erase_node(pictures)
    rest.delete_all_unused_submodules()
    rest.recompile()
    return _fold(rest)


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


def keep_exact(network, nodes):
    """Convolutions that stay in float32 whatever the precision around them.

    The first layers have few channels, so that their sums average no rounding errors out: on EfficientNet-Lite0 most
    of what bfloat16 costs the codes comes from the layers of strides 2 and 4.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and name.removeprefix("extractor.") in nodes:
            network.set_submodule(name, _Exact(module))


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


class _OneBlock(nn.Module):
    def __init__(self, blocks, layer):
        super().__init__()
        self.blocks, self.layer = blocks, layer

    def forward(self, images):
        return self.blocks(images, self.layer)
