"""Which GEMM serves which shapes of the weights, as data: recorded in a run, put in force again when it is repeated."""

from detjac_kernels.roads import choices as gemm_choices
from detjac_kernels.roads import replay as replay_gemm_choices

__all__ = ["gemm_choices", "replay_gemm_choices"]
