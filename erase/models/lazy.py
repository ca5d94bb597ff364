"""Pipelines whose denoiser stays in its files, but for the weights through which text enters."""

import ctypes
import sys
from collections.abc import Collection, Iterator
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import nn

from erase.core.names import filter_names, named_parameters
from erase.models.family import FAMILIES, Family
from erase.models.stored import weight_files

UNREAD = ("safety_checker", "feature_extractor", "image_encoder")
PAGEOUT = 21  # Linux's MADV_PAGEOUT, which loses nothing


def left_family(source: Path, variant: str) -> Family | None:
    """The family of a pipeline folder whose denoiser can be left in its files; else none."""
    if not source.is_dir():
        return None
    kind = DiffusionPipeline.load_config(source)["_class_name"]
    known = (family for family in FAMILIES.values() if family.pipeline.__name__ == kind)
    family = next(known, None)
    return family if family and weight_files(source / family.denoiser, variant) else None


def text_pipeline(
    source: Path, family: Family, variant: str, dtype: torch.dtype, device: str
) -> DiffusionPipeline:
    """The pipeline of a folder with its text encoders on the device, which cannot draw.

    Of the denoiser there is nothing but the weights through which text enters, of the VAE nothing;
    their other tensors are on the meta device.
    """
    index = DiffusionPipeline.load_config(source)
    left = {name: _empty(source, name, index[name]) for name in (family.denoiser, "vae")}
    unread: dict[str, Any] = {name: None for name in UNREAD if name in index}
    if "safety_checker" in unread:
        unread["requires_safety_checker"] = False
    pipeline = DiffusionPipeline.from_pretrained(
        source, variant=variant or None, dtype=dtype, **left, **unread
    )
    for part in pipeline.components.values():
        if isinstance(part, nn.Module) and part not in left.values():
            part.to(device)
    denoiser = left[family.denoiser]
    names = named_parameters({family.denoiser: denoiser})
    for patterns in family.enters.values():
        wanted = [name.partition(".")[2] for name in filter_names(names, patterns)]
        _read(denoiser, wanted, weight_files(source / family.denoiser, variant), device, dtype)
    return pipeline


def _empty(source: Path, name: str, stored: tuple[str, str]) -> nn.Module:
    """A component of its config's shapes that computes nothing."""
    kind = getattr(diffusers, stored[1])
    with init_empty_weights(include_buffers=True):
        module = kind.from_config(kind.load_config(source, subfolder=name)).eval()
    for part in (module, *module.children()):  # pipelines call parts of a VAE
        if any(weight.is_meta for weight in part.parameters()):
            part.register_forward_pre_hook(_refuse)
    return module


def _refuse(*_: object) -> None:
    raise ValueError("The weights that draw were left in their files; open the whole pipeline.")


def _read(
    denoiser: nn.Module, names: list[str], files: list[Path], device: str, dtype: torch.dtype
) -> None:
    missing = set(names)
    for path in files:
        with safe_open(path, "pt") as stored:
            for name in sorted(missing & set(stored.keys())):
                values = stored.get_tensor(name)
                set_module_tensor_to_device(denoiser, name, device, values, dtype)
                missing.discard(name)
    if missing:
        raise ValueError(f"its files hold no {min(missing)}")


def is_left(module: nn.Module) -> bool:
    """Whether its weights were left in their files."""
    return _refuse in module._forward_pre_hooks.values()


def require_loaded(module: nn.Module) -> None:
    """ValueError if its weights were left in their files."""
    if is_left(module):
        _refuse()


def one_by_one(parts: Collection[nn.Module]) -> Iterator[nn.Module]:
    """A pipeline's modules in turn; weights that lie in files are let go, if any were left there.

    What was let go takes no memory until it is asked for again. Linux alone can.
    """
    left = sys.platform == "linux" and any(map(is_left, parts))
    for part in parts:
        yield part
        if left:
            _let_go(part)


def _let_go(module: nn.Module) -> None:
    madvise = ctypes.CDLL(None).madvise
    for weight in module.parameters():
        if weight.device.type == "cpu":
            start = weight.data_ptr() // PAGESIZE * PAGESIZE
            length = weight.data_ptr() + weight.nbytes - start
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), PAGEOUT)
