"""What singular vectors mean: decoding, contributions, stable rank, figures, the page and the table."""

from detjac_lanczos.reading.contribution import Contribution, contributions, estimate_contributions
from detjac_lanczos.reading.decode import Decoded, decode_left, decode_right
from detjac_lanczos.reading.figures import plot_contributions, plot_reconstruction, plot_spectra, save_figures
from detjac_lanczos.reading.page import render_page
from detjac_lanczos.reading.stable_rank import StableRank, stable_ranks, surveyed_stable_rank
from detjac_lanczos.reading.table import render_table

__all__ = [
    "Contribution",
    "Decoded",
    "StableRank",
    "contributions",
    "decode_left",
    "decode_right",
    "estimate_contributions",
    "plot_contributions",
    "plot_reconstruction",
    "plot_spectra",
    "render_page",
    "render_table",
    "save_figures",
    "stable_ranks",
    "surveyed_stable_rank",
]
