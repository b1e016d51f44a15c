"""Triton kernels. Import them only where Triton is there: nothing outside this folder does so at import time.

Each has a torch twin in the package above, which is its specification and its test oracle; some take more arguments.
"""
