"""The weights file of an Erasure: a stock LoRA when every delta is low rank, else our deltas."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from erase.core.delta import Delta, LowRankDelta, read_delta

LORA, DELTAS = "pytorch_lora_weights.safetensors", "deltas.safetensors"
LORA_PARTS = {"up": "lora_B", "down": "lora_A"}


def write_deltas(deltas: Mapping[str, Delta], folder: Path) -> Path:
    """Write one file; a LoRA one is what diffusers' `load_lora_weights(folder)` looks for."""
    low_rank = bool(deltas) and all(isinstance(d, LowRankDelta) for d in deltas.values())
    parts = {}
    for name, delta in deltas.items():
        for part, tensor in delta.tensors().items():
            key = _lora_key(name, part) if low_rank else f"{name}:{part}"
            parts[key] = tensor.contiguous()
    path = folder / (LORA if low_rank else DELTAS)
    save_file(parts, path, metadata={"format": "pt"})
    return path


def read_deltas(folder: Path) -> dict[str, Delta]:
    """Read either file back."""
    if (folder / LORA).exists():
        parts = {_delta_key(key): tensor for key, tensor in load_file(folder / LORA).items()}
    else:
        parts = load_file(folder / DELTAS)
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in parts.items():
        name, part = key.rsplit(":", 1)
        grouped.setdefault(name, {})[part] = tensor
    return {name: read_delta(group) for name, group in grouped.items()}


def _lora_key(name: str, part: str) -> str:
    return f"{name.removesuffix('.weight')}.{LORA_PARTS[part]}.weight"


def _delta_key(key: str) -> str:
    module, side, _ = key.rsplit(".", 2)
    part = next(part for part, name in LORA_PARTS.items() if name == side)
    return f"{module}.weight:{part}"
