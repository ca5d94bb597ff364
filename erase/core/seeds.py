"""Random numbers from seeds of any size."""

import torch

SEEDS = 2**64  # that torch tells apart


def folded(seed: int) -> int:
    """The seed itself, or for negative and larger ones one that torch takes."""
    return seed % SEEDS


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU that begins at a seed of any size."""
    return torch.Generator("cpu").manual_seed(folded(seed))
