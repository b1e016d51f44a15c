"""A kernel that does next to nothing: it tells whether Triton compiles and launches at all on a device."""

import torch
import triton
import triton.language as tl

from detjac_kernels.device.launching import launch


@triton.jit
def trial_kernel(out):
    """Write one number."""
    tl.store(out, 1)


def launch_trial(device: torch.device) -> None:
    """Launch it; what Triton or the device lacks is the error."""
    launch(trial_kernel, (1,), torch.empty(1, dtype=torch.uint8, device=device))
