"""Explanations side by side: `python book/experiments/explanations.py` (about an hour on two cores).

Two networks on one backbone, each from picture to logit: a head of parts that pools by a maximum, and a linear layer on the average. What is
explained is the answer that a network gives. CAM explains the second network, all others explain the first. Grad-CAM and its kin are those of
the package grad-cam, before its scaling; integrated gradients are captum's. Ablation-CAM switches off 1280 channels, one run each; it is given
the map in place of the picture, which changes nothing but the time. CUB and butterflies are measured where $PARTLIB_DATA holds them.
"""

import time
from functools import partial

import numpy as np
import torch
from captum.attr import IntegratedGradients
from pytorch_grad_cam import AblationCAM, GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from runs import CACHE, RESULTS, command_line
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

import partlib as pl
from partlib import cam, evaluation
from partlib.heads import PartHead

RECORD = RESULTS / "explanations.json"
SETS = {
    "groceries": pl.data.groceries,
    "toy birds": lambda: pl.data.toy_birds(1200),
    "CUB, 20 kinds": pl.data.cub200,
    "butterflies": pl.data.butterflies,
}
BUNDLED = ("groceries", "toy birds")
PHOTOGRAPHS, STEPS = 12, 6  # other photographs for each seed
METHODS = ("part-CAM", "CAM", "Grad-CAM", "Grad-CAM++", "Ablation-CAM", "integrated gradients", "random", "centre")


class Last(nn.Module):
    """The last map, where explanations look in: gradients need not go further back."""

    def forward(self, maps):
        return maps if maps.requires_grad else maps.detach().requires_grad_()


class Network(nn.Module):
    """From picture to logit; without a backbone, from map to logit."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.last, self.head = backbone, Last(), head

    def forward(self, pictures):
        return self.head(self.last(self.backbone(pictures)))


class Averaged(nn.Module):
    """The mean over the cells, and a linear layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, maps):
        return self.layer(maps.mean((2, 3)))


# Each method: a network, one picture (1, 3, H, W) and a class in; a map (h, w) out.


def part_cam(network, picture, c):
    with torch.no_grad():
        return cam.part_maps(network.head, network.backbone(picture), c)[0].sum(0)


def class_activation(network, picture, c):
    with torch.no_grad():
        return cam.class_maps(network.backbone(picture), network.head.layer).maps[0, c]


def gradient_cam(method, network, picture, c):
    """What grad-cam draws, before it is scaled to 0 … 1: the weighted channels, their positive part."""
    targets = [ClassifierOutputTarget(c)]
    with method(network, [network.last]) as drawn:
        drawn(picture, targets)
        seen = drawn.activations_and_grads
        gradients = seen.gradients[0].numpy() if seen.gradients else None
        raw = drawn.get_cam_image(picture, network.last, targets, seen.activations[0].numpy(), gradients)
    return torch.from_numpy(raw[0]).clamp(min=0).float()


def ablation_cam(network, picture, c):
    with torch.no_grad():
        maps = network.backbone(picture)
    return gradient_cam(partial(AblationCAM, batch_size=8), Network(nn.Identity(), network.head), maps, c)


def integrated(network, picture, c, steps=16):
    """Attributions of pixels on the way from grey, added up over the cells of the map."""
    values = IntegratedGradients(network).attribute(picture, torch.full_like(picture, 0.5), target=c, n_steps=steps, internal_batch_size=8)
    side = picture.shape[3] // network.backbone.stride
    return (F.adaptive_avg_pool2d(values.sum(1), side)[0] * network.backbone.stride**2).detach()


def drawn_by_chance(seed):
    return lambda network, picture, c: torch.rand((side := picture.shape[3] // 32), side, generator=torch.Generator().manual_seed(seed))


def centre(network, picture, c):
    cell = torch.linspace(-1, 1, picture.shape[3] // 32)
    return torch.exp(-2 * (cell[:, None] ** 2 + cell[None] ** 2))


def methods(seed):
    return {
        "part-CAM": part_cam, "CAM": class_activation, "Grad-CAM": partial(gradient_cam, GradCAM), "Grad-CAM++": partial(gradient_cam, GradCAMPlusPlus),
        "Ablation-CAM": ablation_cam, "integrated gradients": integrated, "random": drawn_by_chance(seed), "centre": centre,
    }  # fmt: skip


# The networks, and the same with weights drawn anew.


def networks(backbone, photos, seed):
    maps, train = pl.extract(backbone, photos, cache=CACHE), photos.train
    labels = photos.labels[train]
    options = dict(pool="max", epochs=15, rate=3e-3, losses=(("orthogonality", 0.1),), within=192, seed=seed)
    head = pl.PartNet(64, **options).fit(maps[train], labels).head_
    half = np.random.default_rng(seed).permutation(len(train))[: len(train) * 2 // 3]  # a sample for each seed: the fit itself draws nothing
    fitted = LogisticRegression(C=0.1, max_iter=2000).fit(pl.encode(maps[train[half]], pl.encoding.gap), labels[half])
    layer = nn.Linear(maps.channels, len(fitted.classes_)).requires_grad_(False)
    layer.weight.copy_(torch.from_numpy(fitted.coef_))
    layer.bias.copy_(torch.from_numpy(fitted.intercept_))
    torch.manual_seed(1000 + seed)
    anew = PartHead(maps.channels, 64, head.classes.out_features, "max", seed=1000 + seed).eval().requires_grad_(False)
    anew.scale.copy_(head.scale)
    known = Network(backbone, head), Network(backbone, Averaged(layer))
    blank = Network(backbone, anew), Network(backbone, Averaged(nn.Linear(maps.channels, layer.out_features).requires_grad_(False)))
    return known, blank


def run(which, seed):
    """All methods on one set: a row of the record."""
    photos, backbone = SETS[which](), pl.Backbone(size=224)
    (parts, mean), (parts_anew, mean_anew) = networks(backbone, photos, seed)
    test = photos[photos.test[7 * seed :: len(photos.test) // PHOTOGRAPHS - 2][:PHOTOGRAPHS]]
    pictures = torch.stack([backbone.prepare(picture) for picture in test]) / 255
    rows = []
    for name, method in methods(seed).items():
        network, anew = (mean, mean_anew) if name == "CAM" else (parts, parts_anew)
        with torch.no_grad():
            logits = network(pictures)
        answers = logits.argmax(1).tolist()
        maps = torch.stack([method(network, picture[None], c) for picture, c in zip(pictures, answers)])
        row = {"method": name, "accuracy": 100 * float(np.mean(answers == test.labels))}
        row |= faithful(network, pictures, maps, answers, name) | located(maps, test)
        again = torch.stack([method(anew, picture[None], c) for picture, c in zip(pictures[:4], answers)])
        row["sanity"] = _mean(evaluation.rank_correlation(maps[:4], again))
        row["forwards"] = cost(method, network, pictures, answers)
        if hasattr(test, "flock"):
            row |= intervened(network, pictures, maps, answers, test)
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    return {"set": which, "seed": seed, "methods": rows}


def faithful(network, pictures, maps, answers, name):
    """Insertion and deletion: areas under the probability of the answer; completeness: the median error of the map's sum; all in percent."""

    @torch.no_grad()
    def probability(c, some):
        return network(some).softmax(1)[:, c]

    row = {}
    for curve in (evaluation.insertion, evaluation.deletion):
        areas = [evaluation.area(curve(partial(probability, c), picture, one, steps=STEPS)) for picture, one, c in zip(pictures, maps, answers)]
        row[curve.__name__] = 100 * float(np.mean(areas))
    if name in ("random", "centre"):
        return row
    with torch.no_grad():
        scores, grey = (network(some)[range(len(answers)), answers] for some in (pictures, torch.full_like(pictures, 0.5)))
    constant = {"integrated gradients": grey, "CAM": network.head.layer.bias[answers] if name == "CAM" else 0}.get(name, 0.0)
    return row | {"completeness": 100 * float(evaluation.completeness_error(maps, scores, constant).median())}


def located(maps, photos):
    """Pointing, energy and overlap, on masks or in boxes, where there are any; in percent."""
    if photos.read_mask is not None:
        truth = [photos.mask(i) for i in range(len(photos))]
    elif photos.boxes is not None:
        truth = [evaluation.box_mask(box, photos[i].size[::-1]) for i, box in enumerate(photos.boxes)]
    else:
        return {}
    overlap = [evaluation.localisation(one, mask) for one, mask in zip(maps, truth)]
    measures = {"pointing": evaluation.points_at, "energy": evaluation.energy}
    row = {name: 100 * float(np.mean([measure(one, mask) for one, mask in zip(maps, truth)])) for name, measure in measures.items()}
    return row | {"IoU": 100 * float(np.mean([area for area, _ in overlap])), "box IoU": 100 * float(np.mean([box for _, box in overlap]))}


def cost(method, network, pictures, answers):
    """Processor time for one photograph, in forward passes: medians of three, the first of four being left out."""
    spent = {"map": [], "forward": []}
    for picture, c in zip(pictures[:4], answers):
        for what, call in (("forward", lambda: network(picture[None])), ("map", lambda: method(network, picture[None], c))):
            with torch.set_grad_enabled(what == "map"):
                start = time.process_time()
                call()
                spent[what].append(time.process_time() - start)
    return float(np.median(spent["map"][1:]) / np.median(spent["forward"][1:]))


def intervened(network, pictures, maps, answers, birds):
    """What happens when true parts are not drawn, and what the maps said about it [after Hesse et al. 2023, with definitions of our own].

    correctness: over a bird's visible parts, the rank correlation of the map's sum on a part with the fall of the logit without it.
    completeness by deletion and by preservation: of the visible parts, drawing without the half on which the map is larger changes the answer;
    drawing without the other half keeps it. background: the answer stays in front of another bird's backdrop.
    """
    again = lambda scene: network(backbone_ready(network, scene))[0].detach()
    correctness, deleted, preserved, background = [], [], [], []
    for i, c in enumerate(answers):
        scene = birds.scene(i)
        masks = scene.part_masks()
        visible = [t for t in range(len(masks)) if masks[t].any()]
        importance = (maps[i] * evaluation.in_cells(masks[visible], maps[i].shape)).sum((1, 2))
        whole = network(pictures[i][None])[0, c].detach()
        falls = torch.stack([whole - again(scene.without(birds.keypoint_names[t]))[c] for t in visible])
        correctness += evaluation.rank_correlation(importance[None], falls[None]).tolist()
        order = [visible[j] for j in importance.argsort(descending=True, stable=True)]
        for taken, answers_as in ((order[: (len(order) + 1) // 2], deleted), (order[(len(order) + 1) // 2 :], preserved)):
            changed = scene
            for t in taken:
                changed = changed.without(birds.keypoint_names[t])
            answers_as.append(int(again(changed).argmax()) == c)
        background.append(int(again(scene.background(birds.scene((i + 1) % len(birds)))).argmax()) == c)
    shares = {"deletion check": 1 - np.mean(deleted), "preservation check": np.mean(preserved), "background": np.mean(background)}
    return {"interventions": _mean(correctness)} | {name: 100 * float(value) for name, value in shares.items()}


def backbone_ready(network, scene):
    return network.backbone.prepare(scene.render())[None] / 255


def _mean(values):
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


if __name__ == "__main__":
    command_line(__file__, RECORD, run, BUNDLED, set=list(SETS))
