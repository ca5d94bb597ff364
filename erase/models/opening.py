"""Opening a pipeline with the catalogue and the judge that go with it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline
from diffusers.loaders import FromSingleFileMixin
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from diffusers.utils import logging as of_diffusers
from huggingface_hub import hf_hub_download
from torch import nn
from transformers.utils import logging as of_transformers

from erase.bundled import EMOJI
from erase.core.names import holds_numbers
from erase.core.process import own_settings
from erase.models.family import family_of, require_supported
from erase.models.lazy import left_family, one_by_one, text_pipeline
from erase.models.stock import text_to_image
from erase.models.stored import denoiser_file, single_file, stored_dtype, tensors_in
from erase.prompts.catalogue import Catalogue, Finetuning, Sampling
from erase.prompts.request import PromptSet, by_group
from erase.support.config import OwnFiles
from erase.support.distributed import DeviceConfig, own_device
from erase.support.errors import refused
from erase.support.files import LARGEST_TEXT, expanded, require_file

INDEX, BUNDLED = DiffusionPipeline.config_name, {"emoji": EMOJI}
TEXTS, WEIGHTS = (".json", ".txt", ".model"), (".safetensors", ".bin")
STOCK = ("None", "diffusers", "transformers")
Offload = Literal["none", "model", "sequential"]


@dataclass(frozen=True, kw_only=True)
class OpeningConfig(OwnFiles, DeviceConfig):
    """How pipelines are opened.

    Args:
        dtype: of the weights; auto as stored, on a CPU float32.
        offload: what waits on the CPU for its turn: parts, or all layers.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    offload: Offload = "none"


@dataclass(frozen=True)
class Model:
    """A pipeline, the name it was asked for by, its concepts if known, and how to sample it.

    offload: what waits on the CPU, where all lies but while it draws. accelerator: where it draws
    then.
    """

    name: str
    pipeline: DiffusionPipeline
    catalogue: Catalogue | None
    offload: Offload = "none"
    accelerator: str = ""

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.accelerator or str(self.pipeline.device)

    @property
    def sampling(self) -> Sampling:
        """How the model is meant to be sampled."""
        return self.catalogue.sampling if self.catalogue else family_of(self.pipeline).sampling

    def finetuning(self, prompts: PromptSet) -> Finetuning:
        """How the model is meant to be finetuned to forget what these prompts name."""
        kinds = {kind for prompt in prompts.forget for kind in prompt.kinds}
        known = self.catalogue.finetuning if self.catalogue else {}
        how = known.get("style" if kinds == {"style"} else "object", Finetuning())
        return how.of_list(len(by_group(prompts.forget)))

    @contextmanager
    def drawing(self) -> Iterator[DiffusionPipeline]:
        """While in force, what is offloaded goes to the accelerator when it is its turn."""
        if self.offload == "none":
            yield self.pipeline
            return
        modules = [m for m in self.pipeline.components.values() if isinstance(m, nn.Module)]
        # Sequential offloading puts other parameters in their place.
        own = [(part._parameters, dict(part._parameters)) for m in modules for part in m.modules()]
        try:
            if self.offload == "model":
                self.pipeline.enable_model_cpu_offload(device=self.accelerator)
            else:  # as enable_sequential_cpu_offload, which cannot be tried on a CPU
                for module in modules:
                    direct = len(module._parameters) > 0
                    cpu_offload(module, torch.device(self.accelerator), offload_buffers=direct)
            yield self.pipeline
        finally:
            self.pipeline.remove_all_hooks()
            for now, before in own:
                now.update(before)
            self.pipeline.to("cpu", silence_dtype_warnings=True)


@dataclass(frozen=True)
class Found:
    """A model that can be opened: its name, how, its concepts if known, where it will compute."""

    name: str
    opening: OpeningConfig
    catalogue: Catalogue | None
    device: str

    @own_settings()
    def open(self, text_alone: bool = False) -> Model:
        """The open model; `text_alone` leaves the denoiser in its files where it can."""
        name, opening, device = self.name, self.opening, self.device
        with _one_sentence(name), _without_loading_bars():
            folder = _folder_of(name, opening)
        if folder.is_dir():  # known of a hub id only now
            denoiser_file(folder, opening.variant)
        dtype = getattr(torch, _dtype_of(folder, opening, device))
        stays = text_alone and opening.offload == "none"
        left = left_family(folder, opening.variant) if stays else None
        with _one_sentence(name), _without_loading_bars():
            if left:
                pipeline = text_pipeline(folder, left, opening.variant, dtype, device)
            else:
                pipeline = text_to_image(_read(folder, opening, dtype))
            _require_finite(pipeline)
        require_supported(pipeline)
        if left or opening.offload != "none":
            return Model(name, pipeline, self.catalogue, opening.offload, device)
        with _one_sentence(name):
            return Model(name, pipeline.to(device), self.catalogue)


@own_settings()
def load_model(name: str | Path | DiffusionPipeline, device: str = "auto", **others: Any) -> Model:
    """Open "emoji", a pipeline folder, a hub id or one file; take an open pipeline as it is.

    others: the other fields of OpeningConfig. Raises ValueError if it cannot be opened so.
    """
    opening = OpeningConfig(device=device, **others)
    taken = isinstance(name, DiffusionPipeline)
    return _taken(name, opening) if taken else find_model(str(name), opening).open()


def find_model(name: str, opening: OpeningConfig) -> Found:
    """The model before it is opened; ValueError if there is none such, or no such device."""
    return Found(name, opening, _catalogue_of(name, opening), _device_of(opening))


def _catalogue_of(name: str, opening: OpeningConfig) -> Catalogue | None:
    """The catalogue of a model; ValueError if there is no such pipeline."""
    source, path = _place(name), single_file(name)
    if path:
        _configs_of(path, opening)
        return None
    with _one_sentence(name):
        _index_of(str(source), opening.revision)
    if source.is_dir():
        denoiser_file(source, opening.variant)
    return Catalogue.of_model(source)


def _device_of(opening: OpeningConfig) -> str:
    """The device that a pipeline is opened for; ValueError if it is not there, or to no avail."""
    device = own_device(opening.device)
    if opening.offload != "none" and torch.device(device).type == "cpu":
        raise ValueError(f"There is nothing to offload from a cpu; leave out offload "
                         f"{opening.offload}, or name a device.")  # fmt: skip
    return device


def oracle_opening(opening: OpeningConfig) -> OpeningConfig:
    """How a model's oracle is opened: what is said of the model's own files is not of its."""
    return OpeningConfig(device=opening.device, dtype=opening.dtype, offload=opening.offload)


def _taken(pipeline: DiffusionPipeline, opening: OpeningConfig) -> Model:
    if opening != OpeningConfig():
        raise ValueError("The pipeline is open already; leave out how to open it, or move it with "
                         "pipeline.to().")  # fmt: skip
    if any(hasattr(part, "_hf_hook") for part in pipeline.components.values()):
        raise ValueError("The pipeline is offloaded; call pipeline.remove_all_hooks() first.")
    require_supported(pipeline)
    name = str(pipeline.name_or_path or "")
    return Model(name, text_to_image(pipeline), Catalogue.of_model(name) if name else None)


def _place(name: str) -> Path:
    """Where a model of this name would lie on disk."""
    return expanded(BUNDLED.get(name, name))


def _folder_of(name: str, opening: OpeningConfig) -> Path:
    """The file, the folder, or what is downloaded of a hub id."""
    source = _place(name)
    if source.exists():
        return source
    revision, variant = opening.revision or None, opening.variant or None
    return Path(DiffusionPipeline.download(name, revision=revision, variant=variant))


def _dtype_of(source: Path, opening: OpeningConfig, device: str) -> str:
    if opening.dtype != "auto":
        return opening.dtype
    if torch.device(device).type == "cpu":
        return "float32"
    path = source if source.is_file() else denoiser_file(source, opening.variant)
    return stored_dtype(tensors_in(path)) if path else "float32"


def _read(source: Path, opening: OpeningConfig, dtype: torch.dtype) -> DiffusionPipeline:
    if source.is_file():
        kind, configs = _configs_of(source, opening)
        return kind.from_single_file(str(source), config=configs, dtype=dtype)
    return DiffusionPipeline.from_pretrained(source, variant=opening.variant or None, dtype=dtype)


def _configs_of(path: Path, opening: OpeningConfig) -> tuple[type[DiffusionPipeline], str]:
    """The class that reads a single file, and the folder or hub id of its configs."""
    tensors, configs = tensors_in(path), opening.model_config
    if configs and not (Path(configs) / INDEX).is_file():
        raise ValueError(f"{configs} is no pipeline folder; give --model_config one with the "
                         "configs and tokenizers of such a model.")  # fmt: skip
    with _one_sentence(str(path)):
        configs = configs or fetch_diffusers_config(tensors)["pretrained_model_name_or_path"]
        kind = getattr(diffusers, _index_of(configs)["_class_name"])
    if not issubclass(kind, FromSingleFileMixin):
        raise ValueError(f"A {kind.__name__} cannot be read from one file; give a whole folder.")
    return kind, configs


def _index_of(source: str, revision: str = "") -> dict[str, Any]:
    """The model_index.json of a pipeline folder or a hub id."""
    if not Path(source).is_dir():
        source = str(Path(hf_hub_download(source, INDEX, revision=revision or None)).parent)
    _require_plain_files(Path(source))
    index = DiffusionPipeline.load_config(source)
    _require_stock(index)
    return index


def _require_plain_files(folder: Path) -> None:
    """ValueError for a text of a model that is too large, or a pipe in a file's place."""
    for path in (*folder.glob("*.*"), *folder.glob("*/*.*")):
        if path.suffix in (*TEXTS, *WEIGHTS):
            require_file(path, LARGEST_TEXT if path.suffix in TEXTS else None)


def _require_stock(index: Mapping[str, Any]) -> None:
    """ValueError unless all classes of an index are of libraries that run no code of a folder."""
    if not isinstance(index.get("_class_name"), str):
        raise ValueError("its pipeline is of no class of diffusers")
    for name, part in index.items():
        if not isinstance(part, list | tuple):
            continue
        library, kind = [*map(str, part), "", ""][:2]
        known = library in STOCK or hasattr(diffusers.pipelines, library)
        if not known or (library == "transformers" and kind.startswith("Auto")):
            raise ValueError(f"its {name:.20} is a {kind:.30} of {library:.20}")


def _require_finite(pipeline: DiffusionPipeline) -> None:
    parts = {part: n for n, part in pipeline.components.items() if isinstance(part, nn.Module)}
    for part in one_by_one(parts):
        for tensor in part.parameters():
            plain = holds_numbers(tensor) and tensor.numel()
            if plain and not all(end.isfinite() for end in tensor.aminmax()):
                raise ValueError(f"{parts[part]} holds numbers that are not finite")


def _one_sentence(name: str) -> AbstractContextManager[None]:
    """Whatever goes wrong within is a ValueError that names the model."""
    return refused(
        f"The model {os.path.expanduser(name)} could not be opened",
        "give 'emoji', a whole pipeline folder, a hub id you can reach, or a file of weights with "
        "--model_config",
    )


@contextmanager
def _without_loading_bars() -> Iterator[None]:
    """While in force, diffusers and transformers show no bars within each other's."""
    with ExitStack() as after:
        for one in (of_diffusers, of_transformers):
            if one.is_progress_bar_enabled():
                one.disable_progress_bar()
                after.callback(one.enable_progress_bar)
        yield
