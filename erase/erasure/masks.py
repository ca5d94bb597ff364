"""Mask files: one bit a weight, and what the mask was made for."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from erase.core.mask import Mask, pack_bits, unpack_bits
from erase.support.config import require_kind
from erase.support.errors import refused
from erase.support.files import replaced_file
from erase.support.reading import read_tensors

MADE_FOR, SHAPE = "made_for", ".shape"


def write_mask(mask: Mask, path: Path, fingerprints: Mapping[str, str]) -> None:
    """Write the mask and the fingerprints of what it was made for, whole or not at all."""
    bits = {name: pack_bits(kept) for name, kept in mask.tensors.items()}
    shapes = {f"{name}{SHAPE}": torch.tensor(m.shape) for name, m in mask.tensors.items()}
    # One entry, for the order of several in the file is random.
    made_for = {MADE_FOR: json.dumps(dict(fingerprints), sort_keys=True)}
    with replaced_file(path) as partial:
        save_file({**bits, **shapes}, partial, metadata=made_for)


def read_mask(
    path: Path, fingerprints: Mapping[str, str], weights: Mapping[str, Tensor] | None = None
) -> Mask:
    """Read a mask, of these weights if any are given.

    Raises ValueError if it is none, if it is of others, and, naming which, if a fingerprint is
    another.
    """
    mend = "name another file, or a new one"
    with refused(f"{path} is not a mask", mend, ValueError, RecursionError):
        parts, metadata = read_tensors(path)
        made_for = json.loads(metadata.get(MADE_FOR, "{}"))
        require_kind(MADE_FOR, made_for, Mapping[str, str])
        masks = _unpacked(parts)
    if others := [name for name, value in fingerprints.items() if made_for.get(name) != value]:
        raise ValueError(f"The mask {path} was made for another {' and '.join(others)}; "
                         "make it again for this one.")  # fmt: skip
    shapes = {name: mask.shape for name, mask in masks.items()}
    if weights is not None and shapes != {name: one.shape for name, one in weights.items()}:
        raise ValueError(f"The mask {path} is of other tensors; make it again for these.")
    return Mask(masks)


def _unpacked(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [name for name in parts if not name.endswith(SHAPE)]
    if not names or {*names, *(f"{name}{SHAPE}" for name in names)} != parts.keys():
        raise ValueError("its tensors are no pairs of bits and shape")
    return {name: unpack_bits(parts[name], parts[f"{name}{SHAPE}"]) for name in names}
