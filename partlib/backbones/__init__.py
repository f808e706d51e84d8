"""Backbones: published networks, each as one thing that turns pictures into feature maps.

`Backbone("efficientnet_lite0")` needs no download; `Backbone("alexnet")`, `"vgg16"`, `"resnet50"`, `"vit_b_16"` and
every other classification network of torchvision, and `"dino_vits16"`, `"dinov2_vits14"` and their kin of torch.hub,
fetch their official weights once.
"""

from .backbone import Backbone
from .networks import HUB, PACKAGED, PUBLISHED

__all__ = ["HUB", "PACKAGED", "PUBLISHED", "Backbone"]
