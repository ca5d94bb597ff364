"""Opening a pipeline with the catalogue and the judge that go with it."""

from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from erase.bundled import EMOJI, JUDGE
from erase.models.family import family_of, require_supported
from erase.prompts.catalogue import Catalogue, Finetuning, Sampling
from erase.prompts.request import PromptSet
from erase.support.checks import first_line

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
        pipeline = DiffusionPipeline.from_pretrained(source, dtype=torch.float32).to(device)
    except Exception as error:
        raise ValueError(
            f"The model {name} could not be opened ({first_line(error)}); give 'emoji', a whole "
            "pipeline folder, or a hub id you can reach."
        ) from error
    require_supported(pipeline)
    return Model(name, pipeline, Catalogue.of_model(source))


def default_judge(model: Model) -> str | None:
    """The bundled judge for models whose concepts the bundled one draws too; none for others."""
    known = Catalogue.of_model(EMOJI)
    ours = model.catalogue and (
        set(model.catalogue.objects) <= set(known.objects)
        and set(model.catalogue.styles) <= set(known.styles)
    )
    return f"local-dir:{JUDGE}" if ours else None
