"""Choosing real images: the initial images of a run, and the baselines that a distilled set must beat."""

from raydd.coreset.forgetting import Forgetting, forgetting_scores
from raydd.coreset.greedy import herding, k_center
from raydd.coreset.rows import per_class, random_rows
from raydd.coreset.scores import el2n, grand, highest

__all__ = ["Forgetting", "el2n", "forgetting_scores", "grand", "herding", "highest", "k_center", "per_class", "random_rows"]
