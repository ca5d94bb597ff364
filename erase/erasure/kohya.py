"""LoRA files under the names that ComfyUI, WebUI and their like read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor

from erase.core.delta import LowRankDelta
from erase.erasure.algebra import largest_rank, require_loader
from erase.erasure.erasure import Erasure
from erase.erasure.weights import lora_tensors, low_rank_of
from erase.support.files import replaced_folder

KOHYA = "kohya.safetensors"


def export_kohya(erasure: Erasure, folder: str | Path) -> Path:
    """Write a folder with KOHYA, a LoRA in kohya's names, by diffusers' own converter; its path.

    `unet.a.b.lora_A.weight` becomes `lora_unet_a_b.lora_down.weight` with an `alpha` equal to the
    rank, and text encoders `lora_te_`, or `lora_te1_` and `lora_te2_` where there are two. Raises
    ValueError for erasures that are no LoRA, and for transformers, whose stock LoRA such programs
    read as it is.
    """
    require_loader(erasure)
    largest_rank(erasure)
    if any(name.startswith("transformer.") for name in erasure.deltas):
        raise ValueError(
            "ComfyUI and its like read a transformer's stock LoRA as it is; choose --format lora."
        )
    one_encoder = erasure.facts.base.family == "sd"
    with replaced_folder(Path(folder)) as partial:
        save_file(kohya_tensors(low_rank_of(erasure.deltas), one_encoder), partial / KOHYA)
    return Path(folder) / KOHYA


def kohya_tensors(deltas: Mapping[str, LowRankDelta], one_encoder: bool) -> dict[str, Tensor]:
    """The tensors of such a file, all of one rank k, since not all programs heed each layer's.

    They are lora_down [k, in, ...], lora_up [out, k, ...] and alpha [], by kohya's names.
    """
    rank = max(delta.rank for delta in deltas.values())
    padded = {name: _padded(delta, rank) for name, delta in deltas.items()}
    tensors = convert_state_dict_to_kohya(lora_tensors(padded))
    if not one_encoder:
        return tensors
    return {name.replace("lora_te1_", "lora_te_", 1): tensor for name, tensor in tensors.items()}


def _padded(delta: LowRankDelta, rank: int) -> LowRankDelta:
    """The same change, its factors filled up with zeros."""
    more = rank - delta.rank
    up = torch.cat([delta.up, delta.up.new_zeros(len(delta.up), more, *delta.up.shape[2:])], 1)
    down = torch.cat([delta.down, delta.down.new_zeros(more, *delta.down.shape[1:])])
    return LowRankDelta(up, down)
