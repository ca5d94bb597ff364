"""Mask files: one bit a weight, and what the mask was made for."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from erase.core.mask import Mask, pack_bits, unpack_bits
from erase.support.files import replaced_file


def write_mask(mask: Mask, path: Path, fingerprints: Mapping[str, str]) -> None:
    """Write the mask and the fingerprints of what it was made for, whole or not at all."""
    bits = {name: pack_bits(kept) for name, kept in mask.tensors.items()}
    shapes = {f"{name}.shape": torch.tensor(m.shape) for name, m in mask.tensors.items()}
    # One entry, for the order of several in the file is random.
    made_for = {"made_for": json.dumps(dict(fingerprints), sort_keys=True)}
    with replaced_file(path) as partial:
        save_file({**bits, **shapes}, partial, metadata=made_for)


def read_mask(path: Path, fingerprints: Mapping[str, str]) -> Mask:
    """Read a mask; ValueError if it is none, or, naming which, if a fingerprint is another."""
    try:
        stored = safe_open(path, "pt")
        made_for = json.loads((stored.metadata() or {})["made_for"])
    except (SafetensorError, KeyError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a mask; name another file, or a new one.") from error
    with stored:
        others = [name for name, value in fingerprints.items() if made_for.get(name) != value]
        if others:
            raise ValueError(f"The mask {path} was made for another {' and '.join(others)}; "
                             "make it again for this one.")  # fmt: skip
        parts = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    names = [name for name in parts if not name.endswith(".shape")]
    return Mask({n: unpack_bits(parts[n], parts[f"{n}.shape"].tolist()) for n in names})
