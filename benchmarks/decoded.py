"""Samples decoded once, for benchmarks that train on a few of them many times."""

from collections.abc import Sequence

from torch.utils.data import Dataset, TensorDataset, default_collate


def in_memory(dataset: Dataset, indices: Sequence[int]) -> TensorDataset:
    """These samples as tensors."""
    return TensorDataset(*default_collate([dataset[index] for index in indices]))
