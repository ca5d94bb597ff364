"""What a checkpoint says of itself before it is loaded: its tensors, variants, dtype."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from erase.support.errors import refused
from erase.support.files import expanded

SINGLE_FILES = (".safetensors", ".ckpt")
DENOISERS = ("unet", "transformer")
IN_SINGLE_FILE = "model.diffusion_model."
KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
LOADED_AS = {torch.float64: "float32", torch.float32: "float32", torch.float16: "float16"}


def single_file(name: str) -> Path | None:
    """The path of a name that means one file of weights; none for folders and hub ids."""
    path = expanded(name)
    return path if path.is_file() or path.suffix in SINGLE_FILES else None


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the meta device, by name.

    Nothing but weights is unpickled. Raises ValueError if it holds something else.
    """
    mend = "give a .safetensors file, or a .ckpt file that holds nothing but tensors"
    with refused(f"{path} is no checkpoint of weights alone", mend):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                return {name: _without_values(part) for name, part in parts.items()}
        stored = torch.load(path, map_location="meta", weights_only=True)
        while "state_dict" in stored:
            stored = stored["state_dict"]
        return {name: one for name, one in stored.items() if isinstance(one, Tensor)}


def _without_values(part: Any) -> Tensor:
    kind = KINDS.get(part.get_dtype(), torch.uint8)
    return torch.empty(part.get_shape(), dtype=kind, device="meta")


def denoiser_file(folder: Path, variant: str) -> Path | None:
    """A file of the denoiser's weights in a pipeline folder; none if there are none at all.

    Raises ValueError naming the variants that are there if this one is not.
    """
    holders = (folder / name for name in DENOISERS if (folder / name).is_dir())
    files = [path for holder in holders for path in sorted(holder.iterdir(), reverse=True)]
    found = {  # safetensors last, so that they count
        _variant_of(path): path
        for suffix in (".bin", ".safetensors") for path in files if path.suffix == suffix
    }  # fmt: skip
    if found and variant not in found:
        there = ", ".join(repr(name) if name else "the plain one" for name in sorted(found))
        raise ValueError(
            f"{folder} holds no weights of the variant {variant!r}; set --variant to what it holds:"
            f" {there}."
        )
    return found.get(variant)


def weight_files(component: Path, variant: str) -> list[Path]:
    """The safetensors files of a variant in a component's folder, shards first."""
    files = (path for path in component.glob("*.safetensors") if _variant_of(path) == variant)
    return sorted(files, key=lambda path: ("-of-" not in path.name, path.name))


def _variant_of(path: Path) -> str:
    """The `fp16` of `model.fp16.safetensors` or `model.fp16-00001-of-00002.safetensors`."""
    _, *variant, _ = re.sub(r"-\d{5}-of-\d{5}", "", path.name).split(".")
    return ".".join(variant)


def stored_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The name of the dtype that most of a denoiser's weights are in; bfloat16 for smaller ones."""
    denoiser = [one for name, one in tensors.items() if name.startswith(IN_SINGLE_FILE)]
    counts: Counter[torch.dtype] = Counter()
    for tensor in denoiser or tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] += tensor.numel()
    most = max(counts, key=counts.__getitem__, default=torch.float32)
    return LOADED_AS.get(most, "bfloat16")
