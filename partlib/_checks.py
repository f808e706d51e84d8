"""What readers most often get wrong, each answered by one sentence that says how to mend it."""

import numpy as np
import torch


def check_maps(maps):
    """A float tensor of maps `(n, d, h, w)`."""
    if not isinstance(maps, torch.Tensor):
        hint = "maps.tensor() or maps.batches() gives tensors" if hasattr(maps, "batches") else "a Backbone makes maps of pictures"
        raise TypeError(f"expected feature maps as a tensor (n, d, h, w), not {type(maps).__name__}: {hint}")
    if maps.ndim in (3, 4) and maps.shape[-3] == 3:
        raise ValueError(f"{tuple(maps.shape)} looks like pictures, not feature maps: backbone(pictures) makes maps of them")
    if maps.ndim == 3:
        raise ValueError(f"expected feature maps (n, d, h, w), not one map {tuple(maps.shape)}: write maps[None]")
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ValueError(f"expected float feature maps (n, d, h, w), not {maps.dtype} {tuple(maps.shape)}: a Backbone makes maps of pictures")
    if maps.shape[2] == 0 or maps.shape[3] == 0:
        raise ValueError(f"the maps {tuple(maps.shape)} have no cells, so there is nothing to pool: take larger pictures or a smaller stride")
    return maps


def check_vectors(x, what="vectors"):
    """Finite float vectors `(n, d)` as a tensor; arrays are taken too."""
    x = torch.as_tensor(x)
    if x.ndim != 2:
        raise ValueError(f"expected {what} (n, d), not {tuple(x.shape)}: pool maps first (encoding.gap …), or write regions.flatten(0, 1)")
    if not x.is_floating_point():
        raise ValueError(f"expected {what} of floats, not {x.dtype}: give {what}, not labels or indices")
    if not torch.isfinite(x).all():
        rows = torch.nonzero(~torch.isfinite(x).all(1)).flatten().tolist()
        raise ValueError(f"{len(rows)} of the {len(x)} {what} hold NaN or infinity (first: row {rows[0]}): leave them out or mend what made them")
    return x


def check_labels(labels, n, what="labels"):
    """One class number, from 0 on, for each of `n` codes."""
    if labels is None:
        raise ValueError(f"these photographs have no {what}: take a set that has, or pass your own")
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"{n} codes but {what} of shape {labels.shape}: one for each code, in the same order (labels[photos.test] for codes[photos.test])")
    if n and labels.dtype.kind not in "biu":
        raise ValueError(f"expected {what} as whole numbers, not {labels.dtype}: np.unique(names, return_inverse=True)[1] numbers names")
    if n and labels.min() < 0:
        raise ValueError(f"{what} are numbered from 0 on, and {np.sum(labels < 0)} of the {n} are negative: leave those codes out")
    return labels.astype(int)


def check_count(k, n, what, of):
    """A whole number 1 ≤ k ≤ n."""
    if n == 0:
        raise ValueError(f"{k} {what} of no {of} at all: give some {of}")
    if not 1 <= k <= n or k != int(k):
        raise ValueError(f"{k} {what} of {n} {of}: take a whole number from 1 to {n}")
    return int(k)
