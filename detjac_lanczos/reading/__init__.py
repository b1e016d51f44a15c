"""What singular vectors mean: decoding, contributions, stable rank, figures, the page and the table."""

from detjac_lanczos.reading.contribution import Contribution, contributions
from detjac_lanczos.reading.decode import Decoded, decode_left, decode_right
from detjac_lanczos.reading.ordinary import ordinary_estimate, ordinary_products
from detjac_lanczos.reading.stable_rank import StableRank, stable_ranks

__all__ = [
    "Contribution",
    "Decoded",
    "StableRank",
    "contributions",
    "decode_left",
    "decode_right",
    "ordinary_estimate",
    "ordinary_products",
    "stable_ranks",
]
