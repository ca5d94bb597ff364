"""Opening a pipeline with the catalogue and the judge that go with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as of_diffusers
from huggingface_hub import hf_hub_download
from transformers.utils import logging as of_transformers

from erase.bundled import EMOJI, JUDGE
from erase.models.family import family_of, require_supported
from erase.prompts.catalogue import Catalogue, Finetuning, Sampling
from erase.prompts.request import PromptSet
from erase.support.errors import first_line

BUNDLED = {"emoji": EMOJI}


@dataclass(frozen=True)
class Model:
    """A pipeline, the name it was asked for by, its concepts if known, and how to sample it."""

    name: str
    pipeline: DiffusionPipeline
    catalogue: Catalogue | None

    @property
    def sampling(self) -> Sampling:
        """How the model is meant to be sampled."""
        return self.catalogue.sampling if self.catalogue else family_of(self.pipeline).sampling

    def finetuning(self, prompts: PromptSet) -> Finetuning:
        """How the model is meant to be finetuned to forget what these prompts name."""
        kinds = {kind for prompt in prompts.forget for kind in prompt.kinds}
        known = self.catalogue.finetuning if self.catalogue else {}
        return known.get("style" if kinds == {"style"} else "object", Finetuning())


def load_model(name: str, device: str = "cpu") -> Model:
    """Open "emoji", a pipeline folder or a hub id in float32; ValueError if that fails."""
    source = BUNDLED.get(name, name)
    try:
        with _without_loading_bars():
            pipeline = DiffusionPipeline.from_pretrained(source, dtype=torch.float32).to(device)
    except Exception as error:
        raise _not_opened(name, error) from error
    require_supported(pipeline)
    return Model(name, pipeline, Catalogue.of_model(source))


@contextmanager
def _without_loading_bars() -> Iterator[None]:
    """While in force, diffusers and transformers show no bars within each other's."""
    shown = [one for one in (of_diffusers, of_transformers) if one.is_progress_bar_enabled()]
    for one in shown:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in shown:
            one.enable_progress_bar()


def catalogue_of(name: str) -> Catalogue | None:
    """The catalogue of a model, before it is opened; ValueError if there is no such pipeline."""
    source = BUNDLED.get(name, name)
    try:
        if Path(source).is_dir():
            DiffusionPipeline.load_config(source)
        else:
            hf_hub_download(str(source), DiffusionPipeline.config_name)
    except Exception as error:
        raise _not_opened(name, error) from error
    return Catalogue.of_model(source)


def _not_opened(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"The model {name} could not be opened ({first_line(error)}); give 'emoji', a whole "
        "pipeline folder, or a hub id you can reach."
    )


def default_judge(catalogue: Catalogue | None) -> str | None:
    """The bundled judge for models whose concepts the bundled one draws too; none for others."""
    known = Catalogue.of_model(EMOJI)
    ours = (
        catalogue
        and known
        and (
            set(catalogue.objects) <= set(known.objects)
            and set(catalogue.styles) <= set(known.styles)
        )
    )
    return f"local-dir:{JUDGE}" if ours else None
