"""LoRA files under the names that ComfyUI, A1111, sd-scripts and their like read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from erase.core.delta import LowRankDelta
from erase.core.names import lora_holds
from erase.erasure.algebra import largest_rank
from erase.erasure.erasure import Erasure
from erase.erasure.programs import Naming, Program, layer_in_file, layers_read, naming_for
from erase.erasure.weights import LORA, lora_tensors, low_rank_of
from erase.support.files import replaced_folder

KOHYA = "kohya.safetensors"
# The parts of what the original code made one layer of, by the end of its name, and their widths.
PARTS = ("q", "k", "v", "mlp")
FUSED = {"qkv": (1, 1, 1), "linear1": (1, 1, 1, 4)}


def export_kohya(erasure: Erasure, folder: str | Path, program: Program = "comfyui") -> Path:
    """Write a folder with one LoRA file in the names that `program` reads; the file's path.

    It is LORA in stock names, else KOHYA. Raises ValueError for erasures that are no LoRA, and if
    the program would read none of its layers.
    """
    largest_rank(erasure)
    family = erasure.facts.base.family
    naming = naming_for(program, family)
    deltas = {n: delta for n, delta in low_rank_of(erasure.deltas).items() if lora_holds(n)}
    if not layers_read(deltas, naming, family)[program]:
        raise ValueError(f"{program} reads none of this erasure's layers; export a pipeline.")
    stock = naming == "stock"
    tensors = lora_tensors(deltas) if stock else kohya_tensors(deltas, naming, family)
    name = LORA if stock else KOHYA
    with replaced_folder(Path(folder)) as partial:
        save_file(tensors, partial / name, metadata={"format": "pt"})
    return Path(folder) / name


def kohya_tensors(
    deltas: Mapping[str, LowRankDelta], naming: Naming, family: str
) -> dict[str, Tensor]:
    """The tensors of such a file by its names: lora_down [k, in, ...], lora_up [out, k, ...].

    In UNets' files all are of one rank k, since not all programs heed each layer's. An alpha []
    equal to k stands beside them, but where A1111 would stop at it.
    """
    unet = naming == "kohya"
    layers = _joined(_with_whole_attention(deltas) if unet else deltas, naming, family)
    rank = max(delta.rank for delta in layers.values())
    tensors = {}
    for name, delta in layers.items():
        delta = _padded(delta, rank) if unet else delta
        tensors[f"{name}.lora_up.weight"] = delta.up.contiguous()
        tensors[f"{name}.lora_down.weight"] = delta.down.contiguous()
        if naming != "a1111":
            tensors[f"{name}.alpha"] = torch.tensor(float(delta.rank))
    return tensors


def _with_whole_attention(deltas: Mapping[str, LowRankDelta]) -> dict[str, LowRankDelta]:
    """Zeros for what is missing of a text encoder's attention, which A1111 changes whole or not."""
    filled: dict[str, LowRankDelta] = {}
    for name, delta in deltas.items():
        layer, attention, _ = name.partition(".self_attn.")
        if name.startswith("text_encoder") and attention:
            none = LowRankDelta(torch.zeros_like(delta.up), torch.zeros_like(delta.down))
            filled |= dict.fromkeys(
                (f"{layer}.self_attn.{part}_proj.weight" for part in ("q", "k", "v", "out")), none
            )
    return filled | dict(deltas)


def _joined(
    deltas: Mapping[str, LowRankDelta], naming: Naming, family: str
) -> dict[str, LowRankDelta]:
    """The changes by the names of the file's layers, several joined where those are one."""
    parts: dict[str, dict[str, LowRankDelta]] = {}
    for name, delta in deltas.items():
        if layer := layer_in_file(name, naming, family):
            part = name.removesuffix("_proj.weight").removesuffix(".weight").rpartition("_")[2]
            parts.setdefault(layer, {})[part] = _in_their_order(name, delta)
    return {name: _one(of, FUSED.get(name.rpartition("_")[2])) for name, of in parts.items()}


def _in_their_order(name: str, delta: LowRankDelta) -> LowRankDelta:
    """The change with shift before scale, as the original code has them in its last norms."""
    if "norm" not in name or len(delta.up) != 2 * delta.down.shape[1]:
        return delta
    scale, shift = delta.up.chunk(2)
    return LowRankDelta(torch.cat([shift, scale]), delta.down)


def _one(parts: Mapping[str, LowRankDelta], widths: tuple[int, ...] | None) -> LowRankDelta:
    """The change of one layer, or of one whose rows are the parts', widths to one another."""
    some, delta = next(iter(parts.items()))
    if widths is None:
        return delta
    unit = len(delta.up) // widths[PARTS.index(some)]
    ups = [
        parts[part].up if part in parts else delta.up.new_zeros(width * unit, 0)
        for part, width in zip(PARTS, widths, strict=False)
    ]
    return LowRankDelta(
        torch.block_diag(*ups), torch.cat([parts[part].down for part in PARTS if part in parts])
    )


def _padded(delta: LowRankDelta, rank: int) -> LowRankDelta:
    """The same change, its factors filled up with zeros."""
    more = rank - delta.rank
    up = torch.cat([delta.up, delta.up.new_zeros(len(delta.up), more, *delta.up.shape[2:])], 1)
    down = torch.cat([delta.down, delta.down.new_zeros(more, *delta.down.shape[1:])])
    return LowRankDelta(up, down)
