"""The explorer: one HTML file with photographs, their parts, their neighbours and the reasons; it needs no kernel and no network.

The page computes everything from stored numbers, by the equations of `cam`: logits ℓ_c = Σ_p V_cp b_p + constant, and cosines Σ_p b_p b'_p / (‖b‖ ‖b'‖)
of bags of length 1, less their mean. A part that is switched off takes its term out of each sum, and nothing else changes.
"""

import base64
import html
import io
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ._progress import progress
from .cam import strongest
from .features import Maps, batches
from .heads import PartHead

PAGE = Path(__file__).with_name("explorer.html")  # the page without its numbers


def explorer(head: PartHead, maps: Maps, photos, file, title="What the parts saw", side=176) -> Path:
    """Write the explorer of these photographs; returns its path.

    Args:
        head: of parts; with classes, the page shows their scores too. Its batch norm, if any, is folded, and the constant is shown.
        maps: of the photographs, as `extract` makes them, or a tensor. photos: in the same order.
        side: of the stored pictures, in pixels; a thousand of 176 make a file of some 8 MB.
    """
    if len(maps) != len(photos):
        raise ValueError(f"{len(maps)} maps of {len(photos)} photographs: give the maps of just these, in the same order")
    if head.parts > 256 or max(maps.shape[2:]) > 255:
        raise ValueError(f"the page holds up to 256 parts on maps of up to 255 cells a side, not {head.parts} on {maps.shape[2]} x {maps.shape[3]}")
    page = PAGE.read_text(encoding="utf-8").replace("{{title}}", html.escape(title))
    data = json.dumps(numbers(head, maps) | facts(photos, side) | {"title": title}, ensure_ascii=False).replace("</", "<\\/")
    file = Path(file)
    beside = file.with_name(file.name + ".part")
    beside.write_text(page.replace("{{data}}", data), encoding="utf-8")
    os.replace(beside, file)
    return file


@torch.no_grad()
def numbers(head, maps) -> dict:
    """What the page computes with: bags and their mean, boxes, weights and constants; arrays in base64, float32 or bytes."""
    bags, boxes = zip(*((head.bag(some), strongest(head, some)) for some in batches(maps)))
    bags = torch.cat(bags)
    decides = head.classes is not None
    weights, constant = head.folded() if decides else (bags.new_zeros(0, head.parts), bags.new_zeros(0))
    floats = {"bags": bags, "mean": F.normalize(bags, dim=1).mean(0), "weights": weights, "constant": constant}
    packed = {name: _base64(values.cpu().numpy().astype("<f4").tobytes()) for name, values in floats.items()}
    packed["boxes"] = _base64(torch.cat(boxes).cpu().numpy().astype(np.uint8).tobytes())
    return packed | {"n": len(bags), "parts": head.parts, "cells": list(maps.shape[2:])}


def facts(photos, side) -> dict:
    """What the page shows: pictures, names, and classes where they are known."""
    pictures = [_picture(photos[i], side) for i in progress(range(len(photos)), desc="pictures for the explorer", unit="picture", leave=False)]
    labels = None if photos.labels is None else [int(label) for label in photos.labels]
    return {"pictures": pictures, "labels": labels, "classes": list(photos.classes)}


def _picture(picture, side):
    """Stretched to a square, as the network saw it; the page gives it back its proportions."""
    file = io.BytesIO()
    small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    small.save(file, format="jpeg", quality=72, optimize=True)
    return {"jpeg": _base64(file.getvalue()), "aspect": round(picture.width / picture.height, 4)}


def _base64(data):
    return base64.b64encode(data).decode()
