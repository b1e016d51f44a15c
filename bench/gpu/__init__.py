"""The kernels and the large job on a CUDA machine: verified, timed, and held against what was predicted."""
