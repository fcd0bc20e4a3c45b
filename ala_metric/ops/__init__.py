"""Floor 2: the functional ops, each with ``impl="native" | "strips" | "reference" | "auto"``."""

from ._check import set_checks
from ._functions import mixture_of_distance
from ._select import Choice, explain
from .distance_mixture import distance_mixture, mixture_of_matrix
from .distance_statistics import distance_statistics
from .focal_weighting import focal_of_matrix, focal_weighting
from .mined import mixture_pairs, mixture_triplets
from .pairwise_distance import pairwise_distance
from .positive_ranks import positive_ranks

__all__ = [
    "Choice",
    "distance_mixture",
    "distance_statistics",
    "explain",
    "focal_of_matrix",
    "focal_weighting",
    "mixture_of_distance",
    "mixture_of_matrix",
    "mixture_pairs",
    "mixture_triplets",
    "pairwise_distance",
    "positive_ranks",
    "set_checks",
]
