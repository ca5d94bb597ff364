"""Stable Diffusion that loads erasures."""

from diffusers import StableDiffusionPipeline

from erase.erasure.loading import ErasureLoaderMixin


class ErasedStableDiffusionPipeline(ErasureLoaderMixin, StableDiffusionPipeline):
    """The stock pipeline with `load_erasure`, `set_erasure_scale`, `unload_erasure` and so on.

    `DiffusionPipeline.from_pretrained(MODEL, custom_pipeline=
    "pipelines/erased_stable_diffusion.py",
    trust_remote_code=True)` opens a model as one; `from_pipe` turns an open pipeline into one, and
    one into the family's image-to-image and inpainting pipelines, which share its weights.
    """
