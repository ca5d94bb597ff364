"""How other programs name the layers of a LoRA file, and which of them they read.

Read from the programs' own sources (ComfyUI 0.3.64, A1111 1.10.1, sd-scripts 0.9.1).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from erase.bundled import ORIGINAL_LAYERS
from erase.core.names import lora_key
from erase.support.config import require_kind
from erase.support.reading import read_json

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
    ("original", "flux"): {
        "comfyui": ALL,
        "sd-scripts": rf"{TEXT}|lora_unet_(?!final_layer_).*",
    },
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
