"""The weights file of an Erasure: a stock LoRA when every delta is low rank, else our deltas."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from erase.core.delta import Delta, LowRankDelta, read_delta
from erase.core.names import from_lora_key, lora_holds, lora_key

LORA, DELTAS = "pytorch_lora_weights.safetensors", "deltas.safetensors"
PROJECTIONS = "projections.safetensors"
OWN = "down"


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
    _write_bases(deltas, folder)
    return path


def read_deltas(folder: Path) -> dict[str, Delta]:
    """Read either file back."""
    if (folder / LORA).exists():
        stored, spelt = load_file(folder / LORA), from_lora_key
    else:
        stored, spelt = load_file(folder / DELTAS), _from_own_key
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name, part = spelt(key)
        grouped.setdefault(name, {})[part] = tensor
    deltas = {name: read_delta(group) for name, group in grouped.items()}
    deltas |= _with_bases(folder, low_rank_of(deltas))
    return {name: delta for name, delta in deltas.items() if not _is_filler(delta)}


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


def _write_bases(deltas: Mapping[str, Delta], folder: Path) -> None:
    tensors, names = shared_bases(deltas)
    if names:
        # One entry, for the order of several in the file is random.
        save_file(tensors, folder / PROJECTIONS, metadata={"read_by": json.dumps(names)})


def _with_bases(folder: Path, deltas: Mapping[str, LowRankDelta]) -> dict[str, LowRankDelta]:
    """Those of the deltas that are projections, with the axes that they take out."""
    if not (folder / PROJECTIONS).exists():
        return {}
    with safe_open(folder / PROJECTIONS, "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        read_by = json.loads(stored.metadata()["read_by"])
    own = {name: deltas[name].down.flatten(1) for name in read_by}
    return {
        name: replace(deltas[name], input_basis=own[name] if key == OWN else tensors[key])
        for name, key in read_by.items()
    }


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


def _is_filler(delta: Delta) -> bool:
    return isinstance(delta, LowRankDelta) and not delta.up.any()


def _from_own_key(key: str) -> tuple[str, str]:
    name, part = key.rsplit(":", 1)
    return name, part
