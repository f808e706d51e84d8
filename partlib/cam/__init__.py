"""Explanations that are sums: which cells, and which parts, a decision or a match came from, exactly.

A network that averages its last map and applies a linear layer gives class c the logit

    ℓ_c = b_c + Σ_k w_ck (1/hw) Σ_xy f_k(x, y) = b_c + Σ_xy M_c(x, y),    M_c(x, y) = (1/hw) Σ_k w_ck f_k(x, y).

So M_c is a picture of the logit: signed, and its cells add up to the logit less the bias. Zhou et al. (CVPR 2016) draw
it without the factor 1/hw, and each map stretched to its own range, which hides both sign and size. Neither is done here.

A part head's logit is a sum over parts, ℓ_c = Σ_p V_cp b_p, and so is the cosine of two photographs' codes, however it was whitened.
"""

from .class_maps import ClassMaps, class_maps, enlarge, object_box
from .matches import MatchSheet, code_match, cosine_terms, part_match
from .parts import (
    CategoryParts, PartContributions, ScoreSheet, category_parts, evidence_maps, part_contributions, part_maps, score_sheet, strongest, what_if,
)  # fmt: skip

__all__ = [
    "CategoryParts", "ClassMaps", "MatchSheet", "PartContributions", "ScoreSheet", "category_parts", "class_maps", "code_match", "cosine_terms",
    "enlarge", "evidence_maps", "object_box", "part_contributions", "part_maps", "part_match", "score_sheet", "strongest", "what_if",
]  # fmt: skip
