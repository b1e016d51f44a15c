"""Hot paths of the detached network: tensors in, tensors out.

All has plain torch in it, which is the road taken on machines without an accelerator; where there is a device kernel
too, it is that kernel's specification and test oracle.
"""

from detjac_kernels.captures import rms_reciprocal
from detjac_kernels.gemm import epilogue, linear, linear_transposed, surrounded
from detjac_kernels.mixing_roads import mix, mix_rebuilt, mix_rebuilt_transposed, mix_transposed
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
