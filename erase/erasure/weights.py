"""The weights file of an Erasure, a stock LoRA where every delta is low rank, and mask files."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from erase.core.delta import Delta, LowRankDelta, read_delta
from erase.core.mask import Mask, pack_bits, unpack_bits
from erase.core.names import from_lora_key, lora_holds, lora_key
from erase.support.config import require_kind
from erase.support.errors import refused
from erase.support.files import LONGEST_NAME, read_tensors, replaced_file

LORA, DELTAS = "pytorch_lora_weights.safetensors", "deltas.safetensors"
PROJECTIONS = "projections.safetensors"
OWN, READ_BY = "down", "read_by"
MADE_FOR, SHAPE = "made_for", ".shape"


def write_deltas(deltas: Mapping[str, Delta], folder: Path, loads_lora: bool = True) -> Path:
    """Write one file; a LoRA one is what diffusers' `load_lora_weights(folder)` looks for.

    Pipelines that load no LoRA get none. The axes that projections take out go beside it, so that
    they can be composed in order.
    """
    fitting = {n: d for n, d in low_rank_of(deltas).items() if lora_holds(n)}
    low_rank = loads_lora and bool(fitting) and len(fitting) == len(deltas)
    parts = {
        f"{name}:{part}": tensor.contiguous()
        for name, delta in deltas.items()
        for part, tensor in delta.tensors().items()
    }
    path = folder / (LORA if low_rank else DELTAS)
    save_file(lora_tensors(fitting) if low_rank else parts, path, metadata={"format": "pt"})
    tensors, names = shared_bases(deltas)
    if names:
        # One entry, for the order of several in the file is random.
        save_file(tensors, folder / PROJECTIONS, metadata={READ_BY: json.dumps(names)})
    return path


def read_deltas(folder: Path) -> dict[str, Delta]:
    """Read either file back; ValueError, naming it and what is wrong, if it is not whole."""
    there = [name for name in (LORA, DELTAS) if (folder / name).exists()]
    if len(there) != 1:
        raise ValueError(f"{LORA} and {DELTAS} are {'both there' if there else 'missing'}")
    stored, _ = read_tensors(folder / there[0])
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name, part = from_lora_key(key) if there == [LORA] else key.rpartition(":")[::2]
        if part in grouped.setdefault(name, {}):
            raise ValueError(f"{there[0]} holds {name} twice")
        grouped[name][part] = tensor
    deltas: dict[str, Delta] = {}
    for name, group in grouped.items():
        with refused(name, "", ValueError):
            deltas[name] = read_delta(group)
    if (folder / PROJECTIONS).exists():
        deltas |= _with_bases(folder / PROJECTIONS, low_rank_of(deltas))
    fillers = {name for name, delta in low_rank_of(deltas).items() if not delta.up.any()}
    return {name: delta for name, delta in deltas.items() if name not in fillers}


def low_rank_of(deltas: Mapping[str, Delta]) -> dict[str, LowRankDelta]:
    """Those of the deltas that are of low rank."""
    return {name: delta for name, delta in deltas.items() if isinstance(delta, LowRankDelta)}


def shared_bases(deltas: Mapping[str, Delta]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The input bases [k, in] of all deltas, one for all that are alike, and which delta has which.

    Where they are the delta's own `down` factor they go by that name, and need no tensor.
    """
    tensors: dict[str, Tensor] = {}
    read_by: dict[str, str] = {}
    for name, delta in low_rank_of(deltas).items():
        input_basis = delta.input_basis
        if input_basis is None:
            continue
        if torch.equal(input_basis, delta.down.flatten(1)):
            read_by[name] = OWN
            continue
        alike = (key for key, other in tensors.items() if torch.equal(other, input_basis))
        read_by[name] = next(alike, str(len(tensors)))
        tensors.setdefault(read_by[name], input_basis.contiguous())
    return tensors, read_by


def _with_bases(path: Path, deltas: Mapping[str, LowRankDelta]) -> dict[str, LowRankDelta]:
    """Those of the deltas that are projections, with the axes that they take out."""
    tensors, metadata = read_tensors(path)
    with refused(f"{path.name} does not say what reads it", "", ValueError, RecursionError):
        read_by = json.loads(metadata.get(READ_BY, ""))
        require_kind(READ_BY, read_by, Mapping[str, str])
    projections = {}
    for name, key in read_by.items():
        own = deltas[name].down.flatten(1) if name in deltas else None
        basis = own if key == OWN else tensors.get(key)
        if own is None or basis is None or (basis.shape, basis.dtype) != (own.shape, own.dtype):
            raise ValueError(f"{path.name} has no axes that fit {name:.{LONGEST_NAME}}")
        projections[name] = replace(deltas[name], input_basis=basis)
    return projections


def lora_tensors(deltas: Mapping[str, LowRankDelta]) -> dict[str, Tensor]:
    """The tensors of a stock LoRA file: lora_A [k, in, ...] and lora_B [out, k, ...] of each."""
    parts = {
        lora_key(name, part): tensor.contiguous()
        for name, delta in deltas.items()
        for part, tensor in delta.tensors().items()
    }
    return parts | _fillers(deltas)


def _fillers(deltas: Mapping[str, LowRankDelta]) -> dict[str, Tensor]:
    # Diffusers finds a text encoder's LoRA by its attention layers only, so one that edits nothing
    # but the MLP gets an attention layer that changes nothing.
    fillers = {}
    for component in {name.split(".")[0] for name in deltas}:
        names = [name for name in deltas if name.startswith(f"{component}.")]
        mlp = next((name for name in names if ".mlp." in name), None)
        if mlp and not any(".self_attn." in name for name in names):
            layer, linear = mlp.split(".mlp.")
            width = deltas[mlp].shape[linear.startswith("fc1")]
            query = f"{layer}.self_attn.q_proj.weight"
            fillers[lora_key(query, "down")] = torch.zeros(1, width)
            fillers[lora_key(query, "up")] = torch.zeros(width, 1)
    return fillers


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
