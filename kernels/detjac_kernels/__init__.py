"""Hot paths of the detached network: tensors in, tensors out.

Each function is plain torch: the specification and test oracle of a device kernel with the same signature, and the road
taken on machines without an accelerator.
"""

from detjac_kernels.gemm import epilogue, linear, linear_transposed, surrounded
from detjac_kernels.mixing_roads import mix, mix_rebuilt, mix_rebuilt_transposed, mix_transposed
from detjac_kernels.norms import rms_reciprocal
from detjac_kernels.roads import product_of_few_rows
from detjac_kernels.scratch import keep_freed_memory

__all__ = [
    "epilogue",
    "keep_freed_memory",
    "linear",
    "linear_transposed",
    "mix",
    "mix_rebuilt",
    "mix_rebuilt_transposed",
    "mix_transposed",
    "product_of_few_rows",
    "rms_reciprocal",
    "surrounded",
]
