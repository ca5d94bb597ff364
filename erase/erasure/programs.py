"""LoRA files of other programs: their names of layers, which of them they read, and writing one.

Read from the programs' own sources (ComfyUI 0.3.64, A1111 1.10.1, sd-scripts 0.9.1).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from erase.bundled import ORIGINAL_LAYERS
from erase.core.delta import LowRankDelta
from erase.core.names import lora_holds, lora_key
from erase.core.process import own_settings
from erase.erasure.algebra import largest_rank
from erase.erasure.erasure import Erasure
from erase.erasure.weights import LORA, lora_tensors, low_rank_of
from erase.support.config import require_kind
from erase.support.files import read_json, replaced_folder

Program = Literal["comfyui", "a1111", "sd-scripts"]
Naming = Literal["stock", "kohya", "original", "a1111"]
# The names in which a program reads the most of a family.
NAMINGS: Mapping[Program, Mapping[str, Naming]] = {
    "comfyui": {"sd": "kohya", "sdxl": "kohya", "sd3": "stock", "flux": "stock", "pixart": "stock"},
    "a1111": {"sd": "kohya", "sdxl": "kohya", "sd3": "a1111"},
    "sd-scripts": {"sd": "kohya", "sdxl": "kohya", "sd3": "original", "flux": "original"},
}
TEXT = r"lora_te\d?_text_model_encoder_layers_.*"
STOCK_TEXT = r"text_encoder.*\.encoder\.layers\..*"
ALL, STOCK = rf"{TEXT}|lora_unet_.*", rf"{STOCK_TEXT}|transformer\..*"
BLOCKS = rf"{TEXT}|lora_unet_(down_blocks|mid_block|up_blocks)_.*"
UNET = rf"{STOCK_TEXT}|unet\.(?!.*\.to_([qkv]|out\.0)$).*"
JOINT = r"transformer\.transformer_blocks\.\d+\.attn\.to_([qkv]|out\.0)"
# What each program reads of a family's layers by these names.
READ: Mapping[tuple[Naming, str], Mapping[Program, str]] = {
    ("stock", "sd"): {"comfyui": UNET},
    ("stock", "sdxl"): {"comfyui": UNET},
    ("stock", "sd3"): {"comfyui": STOCK, "a1111": JOINT},
    ("stock", "flux"): {"comfyui": STOCK},
    ("stock", "pixart"): {"comfyui": STOCK},
    ("kohya", "sd"): {"comfyui": ALL, "a1111": ALL, "sd-scripts": BLOCKS},
    ("kohya", "sdxl"): {
        "comfyui": ALL,
        "a1111": rf"{TEXT}|lora_unet_(?!up_blocks_0_upsamplers_).*",
        "sd-scripts": BLOCKS,
    },
    ("original", "sd3"): {"comfyui": ALL, "sd-scripts": ALL},
    ("original", "flux"): {"comfyui": ALL, "sd-scripts": rf"{TEXT}|lora_unet_(?!final_layer_).*"},
    ("a1111", "sd3"): {
        "comfyui": ALL,
        "a1111": r"(lora_unet(?!.*_attn2_)|clip_[lg]_transformer)_.*",
    },
}
PREFIXES: Mapping[str, str] = {
    "unet": "lora_unet",
    "transformer": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
# A1111 splits off two parts of a key of SD3, so that an alpha, which has one, would stop it; it
# finds the text encoders by its own names alone.
OF_A1111 = {"text_encoder": "clip_l_transformer", "text_encoder_2": "clip_g_transformer"}
# Diffusers' layers as the original code has them, which makes one of several.
ORIGINAL: Mapping[str, Mapping[str, str]] = read_json(ORIGINAL_LAYERS)
KOHYA = "kohya.safetensors"
# The parts of what the original code made one layer of, by the end of its name, and their widths.
PARTS = ("q", "k", "v", "mlp")
FUSED = {"qkv": (1, 1, 1), "linear1": (1, 1, 1, 4)}


def naming_for(program: Program, family: str) -> Naming:
    """The names to write for a program; ValueError if it reads no LoRA of the family."""
    require_kind("for", program, Program)
    if family in NAMINGS[program]:
        return NAMINGS[program][family]
    known = " or ".join(name for name, families in NAMINGS.items() if family in families)
    mend = f"choose --for {known}" if known else "export a pipeline"
    raise ValueError(f"{program} reads no LoRA of family {family or 'unknown'!r}; {mend}.")


def layer_in_file(name: str, naming: Naming, family: str) -> str:
    """What the layer of a weight is called in a file of these names; "" where it has no name."""
    stock = lora_key(name, "down").removesuffix(".lora_A.weight")
    if naming == "stock":
        return stock
    component, path = stock.split(".", 1)
    if component == "transformer":
        path = _renamed(path, ORIGINAL[family])
    elif component == "unet":
        path = _renamed(path, ORIGINAL["unet"]) or path
    prefix = PREFIXES[component]
    if naming == "a1111":
        prefix = OF_A1111.get(component, prefix)
    elif family == "sd":
        prefix = prefix.replace("te1", "te")
    return f"{prefix}.{path}".replace(".", "_") if path else ""


def _renamed(path: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        pattern = ours.replace(".", r"\.").replace("#", r"(\d+)")
        if found := re.fullmatch(pattern, path):
            return found.expand(theirs.replace("#", r"\1"))
    return ""


def layers_read(names: Iterable[str], naming: Naming, family: str) -> dict[Program, int]:
    """How many of the weights' layers each program reads of a file of these names."""
    layers = {name: layer_in_file(name, naming, family) for name in names}
    patterns = READ.get((naming, family), {})
    read = {
        program: [n for n in layers.values() if re.fullmatch(patterns.get(program, "(?!)"), n)]
        for program in get_args(Program)
    }
    if naming == "stock":
        read["a1111"] = [name for name in read["a1111"] if _is_whole(name, read["a1111"])]
    return {program: len(found) for program, found in read.items()}


def _is_whole(layer: str, layers: Iterable[str]) -> bool:
    """Whether queries, keys and values are all there, or it is none of them."""
    return all(re.sub(r"\.to_[qkv]$", f".to_{part}", layer) in layers for part in "qkv")


@own_settings()
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
