"""Random streams that share a seed and nothing else: what is measured must not have been drawn by what was searched."""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What random vectors are drawn for; a search itself, but for its strands, draws from the seed alone."""

    COMPLETENESS = 0x9E3779B9
    ENERGY = 0x51ED270B
    NORMS = 0x2545F491
    SURVEY = 0x7F4A7C15
    STABLE_RANK = 0x3C6EF372
    COPIES = 0x27D4EB2F
    CONTRIBUTION = 0x1B873593
    THRESHOLD = 0x165667B1

    def generator(self, seed: int, *number: int) -> torch.Generator:
        """Return a generator of this stream's own; ``number`` tells further ones of the same seed apart.

        torch's generator on the CPU keeps the low 32 bits of what seeds it: of the words below the upper 31 bits of the
        second and the lowest of the first.
        """
        words = np.random.SeedSequence([self, seed % 2**64, *number]).generate_state(2)
        return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
