"""Leading singular triplets of any linear operator, with what was measured about them.

Knows nothing of language models: an operator is its products with A and its transpose.
"""

from detjac_lanczos.solvers.certificate import Certificate, Cluster
from detjac_lanczos.solvers.check import OperatorReport, check_operator
from detjac_lanczos.solvers.completeness import Completeness
from detjac_lanczos.solvers.deflated_norm import Interval
from detjac_lanczos.solvers.measure import Measurement, measure_triplets
from detjac_lanczos.solvers.missed import Missed
from detjac_lanczos.solvers.norms import Lengths, Norms, norms, norms_batch
from detjac_lanczos.solvers.operator import LinearOperator, OperatorBatch, SummingBatch, as_operator
from detjac_lanczos.solvers.options import Progress
from detjac_lanczos.solvers.polish import flagged, polish, worst
from detjac_lanczos.solvers.result import Guards, Status, SVDResult, Work
from detjac_lanczos.solvers.svd import svd, svd_batch

__all__ = [
    "Certificate",
    "Cluster",
    "Completeness",
    "Guards",
    "Interval",
    "Lengths",
    "LinearOperator",
    "Measurement",
    "Missed",
    "Norms",
    "OperatorBatch",
    "OperatorReport",
    "Progress",
    "SVDResult",
    "Status",
    "SummingBatch",
    "Work",
    "as_operator",
    "check_operator",
    "flagged",
    "measure_triplets",
    "norms",
    "norms_batch",
    "polish",
    "svd",
    "svd_batch",
    "worst",
]
