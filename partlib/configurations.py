"""Named configurations: every encoding and every part learner with its settings, and the sets and protocols that they are measured by."""

import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from . import data, encoding, evaluation, mining, partnet, retrieval, training
from .backbones import Backbone
from .data import Photos
from .features import Maps, extract
from .regions import Regions, grid
from .whitening import NeighbourWhitening, PCAWhitening, moments

SIZE = 320  # pixels a side that photographs are seen in
AT_KEYPOINTS = (
    "which part scores highest at each keypoint, the background counted as one more; KPR with each cell wholly of its strongest part; purity of the 10 "
    "strongest photographs of a part; consistency over all photographs measured on"
)
LEAVE_ONE_OUT = "each photograph measured on asks all the others; 5-NN and the linear probe learn on the training photographs"


@dataclass(frozen=True)
class Setting:
    """Photographs, those to learn from without labels, those to measure on, and how.

    Args:
        queries: photographs that ask the measured ones, where the set has them. asked: photographs of a class to be recognised in a few-shot episode.
    """

    photos: Photos
    train: Int[np.ndarray, "a"]
    test: Int[np.ndarray, "b"]
    protocol: str = LEAVE_ONE_OUT
    queries: Int[np.ndarray, "m"] = field(default_factory=lambda: np.zeros(0, dtype=int))
    asked: int = 10

    @cached_property
    def sizes(self) -> Float[np.ndarray, "n 2"]:
        """(width, height) of every picture."""
        if hasattr(self.photos, "flock"):  # rendered: all of one size
            return np.full((len(self.photos), 2), float(self.photos.flock.size))
        return np.array([picture.size for picture in self.photos], dtype=float)


def _of(photos, *measured, **more):
    return Setting(photos, photos.train, photos.where(*measured), **more)


def _packages():
    photos = data.packages()
    protocol = f"{LEAVE_ONE_OUT}; query mAP: the 31 clean pictures ask these"
    return _of(photos, "val", "database", protocol=protocol, queries=photos.where("query"))


SETS: dict[str, Callable[[], Setting]] = {
    "groceries": lambda: _of(data.groceries(), "val", "test"),
    "toy birds": lambda: _of(data.toy_birds(300, size=SIZE), "test", asked=1),
    "CUB, 20 kinds": lambda: _of(data.cub200(), "test"),
    "butterflies": lambda: _of(data.butterflies(), "test"),
    "packages": _packages,
}
BUNDLED = ("groceries", "toy birds")
WITH_KEYPOINTS = ("toy birds", "CUB, 20 kinds")


def at_hand() -> list[str]:
    """The sets that are there: all where $PARTLIB_DATA names a folder, else those that come with the library."""
    return list(SETS) if "PARTLIB_DATA" in os.environ else list(BUNDLED)


@dataclass
class Seen:
    """What a method is given: the setting, and the maps of its photographs."""

    setting: Setting
    backbone: Backbone
    cache: str

    @cached_property
    def maps(self) -> Maps:
        """Of all photographs."""
        return extract(self.backbone, self.setting.photos, self.cache)

    @cached_property
    def train(self) -> Maps:
        """Of those to learn from."""
        return self.maps[self.setting.train]

    @cached_property
    def views(self) -> list[Maps]:
        """Of those to learn from: as they are, mirrored, and cropped."""
        own = self.setting.photos[self.setting.train]
        return [self.train, *(extract(self.backbone, seen(own), self.cache) for seen in (data.mirrored, data.cropped))]

    @property
    def labels(self) -> Int[np.ndarray, "a"]:
        """Of those to learn from, for methods that say so."""
        return self.setting.photos.labels[self.setting.train]

    @cached_property
    def before(self) -> list[Maps]:
        """Maps of what comes before the last block: of all photographs, and of those to learn from, mirrored."""
        earlier, own = Backbone(size=SIZE, layer=BLOCK), self.setting.photos[self.setting.train]
        return [extract(earlier, photos, self.cache) for photos in (self.setting.photos, data.mirrored(own))]

    def prepare(self, method: str):
        """Compute the maps that are not there yet."""
        return [getattr(self, which) for which in METHODS[method].looks]


@dataclass(frozen=True)
class Made:
    """What a method makes of the photographs: codes, or scores of parts with the background's last; and how many numbers it learnt.

    Args:
        answers: the classes that it names, where it learnt them.
    """

    codes: Float[Tensor, "n D"] | None = None
    parts: Float[Tensor, "n q h w"] | None = None
    answers: Int[np.ndarray, "n"] | None = None
    parameters: int = 0
    notes: dict = field(default_factory=dict)

    @property
    def dims(self):
        """Length of a code, or how many parts."""
        return self.codes.shape[1] if self.codes is not None else self.parts.shape[1] - 1


@dataclass(frozen=True)
class Method:
    """A configuration: what it does to `Seen` photographs with a seed, and what is said about it.

    Args:
        uses: what it learns from besides the frozen backbone. settings: as JSON takes them. looks: at which maps of `Seen`.
    """

    make: Callable[[Seen, int], Made]
    settings: dict
    task: str = "codes"
    uses: str = "nothing"
    seeded: bool = False
    looks: tuple = ("maps",)

    def fits(self, which: str) -> bool:
        """Whether it can be measured on this set."""
        return self.task == "codes" or which in WITH_KEYPOINTS


POOLINGS = {"GAP": encoding.gap, "MAC": encoding.mac, "SPoC": encoding.spoc, "GeM": encoding.gem, "R-MAC": encoding.rmac}
WHITENING = {"dims": 128, "neighbours": 5}
PARTS = {"groups": 16, "parts of each": 4}  # of the bags
STREAMS = lambda seed: mining.PatternParts(4, support=0.01, seed=seed)
BLOCK = "_blocks.14"  # what comes after it is the last block
HEAD = {"parts": 64, "pool": "max", "epochs": 15, "rate": 3e-3}
FINE = {"epochs": 10, "rate": 3e-4}  # chosen on a quarter of the training birds
DIR = {"dims": 128, "neighbours": 10, "margin": 1.0, "epochs": 10, "batch": 64, "rate": 1e-3}  # margin, neighbours and rate were chosen on the butterflies


def centred(codes, seen: Seen, **more) -> Made:
    """Codes of length 1 less the mean of the training photographs' own."""
    codes = F.normalize(codes, dim=1)
    return Made(F.normalize(codes - codes[seen.setting.train].mean(0), dim=1), parameters=codes.shape[1], **more)


def whitened(codes, seen: Seen, **more) -> Made:
    """Codes whitened by what nearest neighbours among the training photographs differ in."""
    n = len(seen.setting.train)
    whitening = NeighbourWhitening(min(WHITENING["dims"], n // 2), WHITENING["neighbours"]).fit(codes[torch.from_numpy(seen.setting.train)])
    learnt = whitening.mean_.numel() + whitening.projection_.numel()
    return Made(whitening.transform(codes), parameters=learnt, **more)


def _pooled(name, after):
    return lambda seen, seed: after(encoding.encode(seen.maps, POOLINGS[name]), seen)


def _bag(learner):
    def make(seen, seed):
        regions, train = (Regions(maps, grid(*maps.shape[2:])) for maps in (seen.maps, seen.train))
        groups = mining.visual_groups(train, PARTS["groups"], seed)
        parts = learner(seed).fit(train, groups)
        return centred(parts.encode(regions), seen, notes={"parts": len(parts)})

    return make


def _landmarks(seen, seed):
    found = partnet.Landmarks.of(seen.train, 8, seed=seed)
    return whitened(encoding.encode(seen.maps, found.describe), seen)


def _landmarks_and_rmac(seen, seed):
    found = partnet.Landmarks.of(seen.train, 8, seed=seed)
    blocks = [encoding.encode(seen.maps, found.describe), encoding.encode(seen.maps, encoding.rmac)]
    return whitened(encoding.join(*(block - block[seen.setting.train].mean(0) for block in blocks)), seen)


def _part_network(seen, seed):
    net = partnet.PartNet(dims=min(128, len(seen.setting.train) // 2), seed=seed).fit(seen.train)
    learnt = sum(p.numel() for p in net.head_.parameters()) + net.whitening_.projection_.numel()
    return Made(net.encode(seen.maps), parameters=learnt, notes={"carried over": net.carried_over_, "adapted": net.adapted_})


def _regional(windows, pool, trained, labelled=False):
    def make(seen, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            code = retrieval.RegionalCode(seen.maps.channels, seen.maps.shape[2:], DIR["dims"], pool, windows).start(seen.train)
        if trained:
            task = retrieval.Triplets(code, seen.views, seen.labels if labelled else None, DIR["neighbours"], margin=DIR["margin"])
            training.fit(task, DIR["epochs"], DIR["batch"], DIR["rate"], seed=seed)
        notes = {} if code.exponent is None else {"exponent": code.exponent.item()}
        return Made(code.encode(seen.maps), parameters=sum(p.numel() for p in code.parameters()), notes=notes)

    return make


def _whitened_rmac(seen, seed):
    whitening = PCAWhitening(DIR["dims"]).fit(moments(x.flatten(0, 1) for x in map(encoding.rmac_regions, seen.train.batches())))
    return Made(encoding.encode(seen.maps, encoding.rmac, whitening=whitening), parameters=whitening.directions_.numel())


def _three_streams(seen, seed):
    groups = mining.visual_groups(Regions(seen.train, grid(*seen.maps.shape[2:])), PARTS["groups"], seed)
    streams = mining.ThreeStreams(STREAMS(seed)).fit(seen.train, groups)
    return whitened(encoding.encode(seen.maps, streams.describe), seen)


def _head_with_labels(seen, seed):
    net = partnet.PartNet(**HEAD, losses=(("orthogonality", 0.1),), seed=seed).fit(seen.train, seen.labels, seen.views[1:2])
    learnt = sum(p.numel() for p in net.head_.parameters())
    return Made(F.normalize(net.bag(seen.maps), dim=1), answers=net.predict(seen.maps), parameters=learnt)


def _block_with_labels(seen, seed):
    plain, mirrored = seen.before
    block = seen.backbone.after(BLOCK)
    network = evaluation.fine_tune(block, seen.backbone.channels, [plain[seen.setting.train], mirrored], seen.labels, **FINE, seed=seed)
    pooled = encoding.encode(plain, network[:-1])
    return Made(F.normalize(pooled, dim=1), answers=network[-1](pooled).argmax(1).numpy(), parameters=sum(p.numel() for p in network.parameters()))


def _parts(learner):
    """Scores of every cell. None is background: these learners tell parts from one another, or from the world, but no object from its surroundings."""

    def make(seen, seed):
        regions = Regions(seen.train, grid(*seen.maps.shape[2:]))
        parts = learner(seed).fit(regions, mining.visual_groups(regions, 2, seed))
        scores = parts.maps(seen.maps)
        never = torch.full_like(scores[:, :1], -1e9)
        return Made(parts=torch.cat([scores, never], 1), parameters=parts.filters.numel() + len(parts))

    return make


def _landmarks_as_parts(seen, seed):
    """Cosines on the foreground, which is guessed; off it they are below the background's 0."""
    found = partnet.Landmarks.of(seen.train, 8, seed=seed)

    def scores(maps):
        on = found.foreground(maps)[:, None]
        return torch.cat([torch.where(on, found.scores(maps), -1.0), torch.where(on, -1.0, 0.0)], 1)

    return Made(parts=encoding.encode(seen.maps, scores), parameters=found.filters.numel() + found.basis.numel())


def _settings(thing):
    return {name: value for name, value in asdict(thing).items() if isinstance(value, (int, float, str, bool, type(None))) and name != "seed"}


NO_LABELS, LABELS = "the training photographs, no labels", "the training photographs and their labels"
_learners = {
    "k-means parts": lambda seed: mining.KMeansParts(64, seed=seed),
    "patches": lambda seed: mining.PatchParts(4, seed=seed),
    "pattern parts": lambda seed: mining.PatternParts(4, seed=seed),
    "assigned parts": lambda seed: mining.AssignedParts(4, seed=seed),
    "joint parts": lambda seed: mining.JointParts(64, seed=seed),
}
_eight = {
    "8 k-means parts": lambda seed: mining.KMeansParts(8, seed=seed),
    "8 assigned parts": lambda seed: mining.AssignedParts(4, dims=16, photographs=400, seed=seed),
    "8 joint parts": lambda seed: mining.JointParts(8, seed=seed),
}
_dir = lambda windows, pool, trained, uses=NO_LABELS: Method(
    _regional(windows, pool, trained, uses == LABELS), {"windows": windows, "pool": pool} | (DIR if trained else {"dims": DIR["dims"]}),
    uses=uses, seeded=trained, looks=("maps", "views") if trained else ("maps",),
)  # fmt: skip

METHODS: dict[str, Method] = (
    {name: Method(_pooled(name, centred), {"pooling": name, "after": "centred"}, uses="the mean of the training photographs") for name in POOLINGS}
    | {f"{name}, whitened": Method(_pooled(name, whitened), {"pooling": name} | WHITENING, uses=NO_LABELS) for name in POOLINGS}
    | {"R-MAC, regions whitened": Method(_whitened_rmac, {"dims": DIR["dims"]}, uses=NO_LABELS)}
    | {"DIR": _dir("rmac", "max", True), "DIR, proposals": _dir("proposed", "max", True)}
    | {"GeM, projected": _dir("whole", "gem", False), "GeM, learnt": _dir("whole", "gem", True)}
    | {name: Method(_bag(make), _settings(make(0)) | PARTS, uses=NO_LABELS, seeded=True) for name, make in _learners.items()}
    | {"landmarks": Method(_landmarks, {"landmarks": 8} | WHITENING, uses=NO_LABELS, seeded=True)}
    | {"landmarks + R-MAC": Method(_landmarks_and_rmac, {"landmarks": 8} | WHITENING, uses=NO_LABELS, seeded=True)}
    | {"three streams": Method(_three_streams, _settings(STREAMS(0)) | {"groups": PARTS["groups"]} | WHITENING, uses=NO_LABELS, seeded=True)}
    | {"part network": Method(_part_network, _settings(partnet.PartNet()), uses=NO_LABELS, seeded=True)}
    | {"DIR, with labels": _dir("rmac", "max", True, LABELS)}
    | {"part head, with labels": Method(_head_with_labels, HEAD | {"orthogonality": 0.1}, uses=LABELS, seeded=True, looks=("maps", "views"))}
    | {"last block, with labels": Method(_block_with_labels, {"block after": BLOCK} | FINE, uses=LABELS, seeded=True, looks=("maps", "before"))}
    | {name: Method(_parts(make), _settings(make(0)), "parts", NO_LABELS, seeded=True) for name, make in _eight.items()}
    | {"8 landmarks": Method(_landmarks_as_parts, {"landmarks": 8}, "parts", NO_LABELS, seeded=True)}
)
