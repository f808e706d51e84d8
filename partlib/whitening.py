"""Mean and covariance in one pass over any number of vectors, and what they are for: PCA whitening, LDA filters."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ._checks import check_count, check_vectors


class Moments:
    """Count, mean and covariance of vectors that arrive in batches, in memory that does not grow with their number.

    Batches are merged by the exact formula of Chan, Golub and LeVeque (1983), in float64: the result does not depend
    on how the vectors were cut into batches, and a large mean costs no digits.
    """

    def __init__(self):
        self.n, self.mean, self._scatter = 0, None, None

    def update(self, x: Float[Tensor, "m d"]):
        """Take in `m` more vectors."""
        x = check_vectors(x).double()
        if len(x) == 0:
            return self
        if self.n and x.shape[1] != len(self.mean):
            raise ValueError(
                f"these vectors have {x.shape[1]} dimensions, those before them {len(self.mean)}: "
                "gather each kind in Moments of its own"
            )
        mean = x.mean(0)
        scatter = (x - mean).T @ (x - mean)
        if self.n == 0:
            self.n, self.mean, self._scatter = len(x), mean, scatter
            return self
        total, gap = self.n + len(x), mean - self.mean
        self._scatter += scatter + torch.outer(gap, gap) * (self.n * len(x) / total)
        self.mean = self.mean + gap * (len(x) / total)
        self.n = total
        return self

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Σ = (1/n) Σᵢ (xᵢ − μ)(xᵢ − μ)ᵀ."""
        if self.n == 0:
            raise ValueError("no vectors yet: call update(x) first")
        return self._scatter / self.n

    def shrunk(self, shrinkage) -> Float[Tensor, "d d"]:
        """Σ + ε (tr Σ / d) I: invertible however few the vectors, ε = `shrinkage` relative to the mean variance."""
        covariance = self.covariance
        spread = covariance.diagonal().mean()
        return covariance + shrinkage * spread * torch.eye(len(covariance)).to(covariance)


def moments(batches) -> Moments:
    """Moments of an iterable of batches of vectors, `(m, d)` each, or of one tensor or array."""
    total = Moments()
    for x in [batches] if hasattr(batches, "shape") else batches:
        total.update(x)
    return total


@dataclass
class PCAWhitening:
    """PCA whitening: uncorrelated directions, the strongest first, scaled to a common spread.

    y = Λ^(−power) Eᵀ (x − μ), where Λ and E are the leading eigenvalues and eigenvectors of the shrunk covariance.

    Args:
        dims: directions kept; all that carry variance by default.
        shrinkage: ε of `Moments.shrunk`. From some hundred vectors the small eigenvalues are noise, which whitening
            blows up.
        power: 0.5 whitens, 0 rotates only, 0.25 goes half way.

    Attributes after `fit`: `mean_` (d), `directions_` (d, dims), `variances_` (dims), all float32.
    """

    dims: int | None = None
    shrinkage: float = 0.0
    power: float = 0.5

    def fit(self, x: Float[Tensor, "n d"] | Moments):
        """From vectors, or from moments gathered in one pass over more of them than memory holds.

        Vectors of more dimensions than they are many, n < d, have at most n − 1 directions, whatever the shrinkage: then
        Σ is not formed, but their n × n products, which are smaller and say the same.
        """
        if not isinstance(x, Moments) and 2 <= len(x := check_vectors(x)) < x.shape[1]:
            mean, variances, directions = self._of_products(x)
        else:
            mean, variances, directions = self._of_covariance(x if isinstance(x, Moments) else moments(x))
        # An eigenvector's sign is arbitrary: make the largest entry positive, so that every machine gives the same.
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        self.mean_, self.variances_ = mean.float(), variances.float()
        self.directions_ = (directions * largest.sign()).float()
        return self

    def _of_covariance(self, seen):
        if seen.n < 2:
            raise ValueError(f"whitening needs at least 2 vectors, not {seen.n}: give it more")
        variances, directions = torch.linalg.eigh(seen.shrunk(self.shrinkage))
        variances, directions = variances.flip(0), directions.flip(1)
        kept = self._kept(variances, seen.mean, seen.n)
        return seen.mean, variances[:kept], directions[:, :kept]

    def _of_products(self, x):
        """Where (1/n) X Xᵀ v = λ v for centred rows X, Σ has the same λ, with the eigenvector Xᵀ v / √(n λ)."""
        mean = x.mean(0, dtype=torch.float64)
        x = x - mean
        products = x @ x.T / len(x)
        variances, mixtures = torch.linalg.eigh(products)
        variances, mixtures = variances.flip(0), mixtures.flip(1)
        kept = self._kept(variances, mean, len(x))
        directions = x.T @ (mixtures[:, :kept] / (len(x) * variances[:kept]).sqrt())
        return mean, variances[:kept] + self.shrinkage * products.trace() / len(mean), directions

    def _kept(self, variances, mean, n):
        """How many directions. Unshrunk, n vectors have n − 1 at most: the others' variances are rounding errors."""
        noise = (1e-12 * mean.abs().max()) ** 2
        rank = int((variances > torch.maximum(variances[0] * 1e-10, noise)).sum())
        if rank == 0:
            raise ValueError(
                f"all {n} vectors are the same, so there is no direction to whiten: "
                "are they codes of different photographs?"
            )
        if self.dims is None:
            return rank
        return check_count(self.dims, rank, "dimensions", "directions that carry variance")

    def transform(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n dims"]:
        """Whitened vectors (not normalised)."""
        if not hasattr(self, "mean_"):
            raise ValueError("this whitening knows no vectors yet: call fit first")
        x = torch.as_tensor(x)
        if x.shape[-1] != len(self.mean_):
            raise ValueError(
                f"fitted on vectors of {len(self.mean_)} dimensions, given {x.shape[-1]}: give such as it was fitted on"
            )
        return ((x - self.mean_).float() @ self.directions_) * self.variances_**-self.power

    def fold(self, filters: Float[Tensor, "p dims"]) -> tuple[Float[Tensor, "p d"], Float[Tensor, "p"]]:
        """Filters on whitened vectors, as filters and offsets on the vectors themselves: ⟨u, y⟩ = ⟨u', x⟩ + t."""
        unfolded = (filters * self.variances_**-self.power) @ self.directions_.T
        return unfolded, -unfolded @ self.mean_


def lda_filters(means: Float[Tensor, "p d"], seen: Moments, shrinkage=0.1) -> Float[Tensor, "p d"]:
    """Filters w = Σ⁻¹ (m − μ) that tell vectors around each mean m from the rest of the world.

    Hariharan, Malik and Ramanan (ECCV 2012): one covariance for all, learnt once without any labels, in place of a
    search for hard negatives for each filter.
    """
    covariance, means = seen.shrunk(shrinkage), check_vectors(means, "means").double()
    if means.shape[1] != len(covariance):
        raise ValueError(
            f"the moments are of vectors of {len(covariance)} dimensions, the means have {means.shape[1]}: "
            "take both from the same vectors"
        )
    return torch.linalg.solve(covariance, (means - seen.mean).T).T.float()


@dataclass
class NeighbourWhitening:
    """Whitening by what nearest neighbours differ in: a discriminative whitening of codes that needs no labels.

    Codes are made unit and centred. What differs between a code and its nearest others should not count:

        W = mean over pairs (i, j ∈ N_k(i)) of ½ (z_i − z_j)(z_i − z_j)ᵀ + ε (tr W / d) I,    y = W^(−½) z,

    then PCA of y to `dims`, and all once more with the neighbours found in that space. With matching pairs in place of neighbours it is the
    learned whitening of Mikolajczyk and Matas [2007; Radenović et al. 2019, section 3.4]; with pairs of one k-means cluster, LDA on
    pseudo-labels, which depends on the seed of k-means where this depends on none.

    Args:
        dims: of the result, or as many as the codes span. neighbours: k. shrinkage: ε; the larger, the nearer to plain PCA.
        rounds: how often neighbours are looked for; 0 leaves the PCA alone.

    Attributes after `fit`: `mean_` (d), `projection_` (d, dims).
    """

    dims: int = 128
    neighbours: int = 5
    shrinkage: float = 1.0
    rounds: int = 2

    def fit(self, codes: Float[Tensor, "n d"]):
        """From codes of `n` photographs, of which many should have another of their kind among them."""
        z = normalize(check_vectors(codes, "codes").double(), dim=1)
        n, d = z.shape
        check_count(self.neighbours, n - 1, "neighbours", "other codes")
        mean = z.mean(0)
        # Differences of codes lie in the span of the codes: work there, in min(n − 1, d) dimensions.
        span = _span(z - mean)
        if span.shape[1] == 0:
            raise ValueError(f"all {n} codes are the same, so no direction tells photographs apart: are they codes of different ones?")
        z = (z - mean) @ span
        strongest = lambda y: torch.linalg.eigh(y.T @ y)[1].flip(1)[:, : self.dims]
        projection = strongest(z)
        for turn in range(self.rounds):
            apart = (z[:, None] - z[nearest(z @ projection if turn else z, self.neighbours)]).flatten(0, 1)
            within = apart.T @ apart / (2 * len(apart))
            within += self.shrinkage * within.diagonal().sum() / d * torch.eye(len(within), dtype=z.dtype, device=z.device)
            whiten = torch.linalg.inv(torch.linalg.cholesky(within)).T
            projection = whiten @ strongest(z @ whiten)
        projection = span @ projection
        largest = projection.gather(0, projection.abs().argmax(0, keepdim=True))
        self.mean_, self.projection_ = mean.float(), (projection * largest.sign()).float()
        return self

    def transform(self, codes: Float[Tensor, "n d"]) -> Float[Tensor, "n dims"]:
        """Whitened codes of length 1."""
        if not hasattr(self, "mean_"):
            raise ValueError("this whitening knows no codes yet: call fit first")
        codes = check_vectors(codes, "codes")
        if codes.shape[1] != len(self.mean_):
            raise ValueError(f"fitted on codes of {len(self.mean_)} dimensions, given {codes.shape[1]}: give such as it was fitted on")
        return normalize((normalize(codes.float(), dim=1) - self.mean_) @ self.projection_, dim=1)


def _span(x: Float[Tensor, "n d"]) -> Float[Tensor, "d rank"]:
    """An orthonormal basis of the rows, from the smaller of the two products: eigenvalues are squares of lengths."""
    few = len(x) < x.shape[1]
    lengths, vectors = torch.linalg.eigh(x @ x.T if few else x.T @ x)
    kept = lengths > (1e-6 * lengths[-1].sqrt().clamp(min=1e-6)) ** 2 if lengths[-1] > 0 else lengths > 0
    return x.T @ (vectors[:, kept] / lengths[kept].sqrt()) if few else vectors[:, kept]


@torch.no_grad()
def carries_over(codes: Float[Tensor, "n d"], whitening: NeighbourWhitening, splits=6, seed=0) -> float:
    """Whether whitening by neighbours is to be trusted on these photographs, told without labels: yes above 1, no below.

    The whitening is learnt on half of the photographs. On the other half: how far do a photograph's nearest k stand out among all,

        z_i = mean over j ∈ N_k(i) of (s_ij − mean_j s_ij) / std_j s_ij,

    s the cosines? The result is the mean of z after whitening over that before, averaged over `splits` in halves. Where neighbours
    are of one kind, what they differ in does not count on other photographs either, and kinds draw together; where they are not, the
    directions learnt are those of chance, and on other photographs the nearest stand out less than before.
    """
    found = list(_on_other_halves(codes, whitening, splits, seed))
    return float(torch.stack([_standing_out(after, k) / _standing_out(before, k) for before, after, k in found]).mean())


@torch.no_grad()
def shared_neighbours(codes: Float[Tensor, "n d"], whitening: NeighbourWhitening, splits=6, seed=0) -> float:
    """How far neighbours have the same neighbours: which of several codes to prefer, told without labels.

    To be of one kind is an equivalence, to look alike is not. Let N(i) be a photograph i and its 2k nearest. Were it a kind, then N(j) = N(i) for
    each j in it. The result is the share of N(i) that is in N(j), averaged over all i and their neighbours j [a likeness after Jarvis and
    Patrick 1973]; k is that of the whitening, and twice as many, for the very nearest are often the same thing a second later, whatever the code.
    Like `carries_over` it is measured on the half of the photographs that the whitening was not learnt on. Compare codes of the same ones only.
    """
    return float(torch.stack([_shared(after, min(2 * k, len(after) - 1)) for _, after, k in _on_other_halves(codes, whitening, splits, seed)]).mean())


def _on_other_halves(codes, whitening, splits, seed):
    """Codes of half of the photographs, centred, and whitened by what was learnt on the other half; and how many neighbours to look at."""
    z = normalize(check_vectors(codes, "codes"), dim=1)
    if len(z) < 6:
        raise ValueError(f"{len(z)} codes are too few to see in one half what the other half learnt: give six or more")
    draw = torch.Generator().manual_seed(seed)
    for _ in range(splits):
        here, there = torch.randperm(len(z), generator=draw).tensor_split(2)
        k = min(whitening.neighbours, (len(there) - 1) // 2)
        caution = max(1, z.shape[1] / (len(here) - 1))  # ε as in codes of no more dimensions than there are photographs
        options = dict(dims=min(whitening.dims, len(here) // 2), neighbours=k, shrinkage=caution * whitening.shrinkage)
        learnt = replace(whitening, **options).fit(z[here])
        yield z[there] - z[here].mean(0), learnt.transform(z[there]), k


def _shared(codes, k):
    linked = torch.zeros(len(codes), len(codes)).scatter_(1, nearest(codes, k), 1)
    own = linked + torch.eye(len(codes))
    return (own @ own.T * linked).sum() / (linked.sum() * (k + 1))


def _standing_out(codes, k):
    cosines = normalize(codes, dim=1) @ normalize(codes, dim=1).T
    others = cosines[~torch.eye(len(codes), dtype=torch.bool)].view(len(codes), -1)
    return ((others.topk(k, dim=1).values.mean(1) - others.mean(1)) / others.std(1).clamp(min=1e-9)).mean()


def nearest(codes: Float[Tensor, "n d"], k: int) -> Int[Tensor, "n k"]:
    """The k nearest other codes of each by cosine, a block of rows at a time."""
    unit, found = normalize(codes, dim=1), []
    for start in range(0, len(unit), 1024):
        cosines = unit[start : start + 1024] @ unit.T
        rows = torch.arange(len(cosines), device=codes.device)
        cosines[rows, start + rows] = -torch.inf
        found.append(cosines.topk(k, dim=1).indices)
    return torch.cat(found)
