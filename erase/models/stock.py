"""Pipelines around the same parts: with others in their place, or of a sister class."""

import re
from collections.abc import Mapping

import diffusers
from diffusers import DiffusionPipeline
from torch import nn

from erase.core.names import unwrapped

# What draws from a picture too, or is guided by what it draws with its attention perturbed.
ASIDE = re.compile("Img2Img|Inpaint|Kontext|PAG")


def with_components(
    pipeline: DiffusionPipeline,
    components: Mapping[str, nn.Module | None],
    kind: type[DiffusionPipeline] | None = None,
) -> DiffusionPipeline:
    """A second pipeline with the same options around the same components but these.

    It is of the same class, unless `kind` is another that takes the same.
    """
    options = {
        key: pipeline.config[key]
        for key in pipeline._get_signature_keys(kind or pipeline)[1]
        if key in pipeline.config
    }
    if "safety_checker" in components:
        options["requires_safety_checker"] = components["safety_checker"] is not None
    return (kind or type(pipeline))(**{**pipeline.components, **options, **components})


def stock_class(pipeline: DiffusionPipeline) -> type[DiffusionPipeline]:
    """The class of diffusers that the pipeline is of, or derives from."""
    return next(kind for kind in type(pipeline).__mro__ if kind.__module__.startswith("diffusers."))


def text_to_image(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline, or for one that draws from a picture too its sister that draws from text.

    The sister has the same parts; where there is none, the pipeline stays as it is.
    """
    own = stock_class(pipeline)
    kind = getattr(diffusers, ASIDE.sub("", own.__name__), own)
    if kind is own or kind._get_signature_keys(kind)[0] != own._get_signature_keys(own)[0]:
        return pipeline
    return with_components(pipeline, {}, kind)


def plain_pipeline(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline, or one of the same weights where a part is compiled or parallel."""
    modules = {n: m for n, m in pipeline.components.items() if isinstance(m, nn.Module)}
    plain = {n: unwrapped(m) for n, m in modules.items() if unwrapped(m) is not m}
    return with_components(pipeline, plain) if plain else pipeline
