"""Stock diffusers pipelines that load erasures; imported as `erase.pipelines`."""

from erase.erasure.loading import erased
from erase.pipelines.erased_flux import ErasedFluxPipeline
from erase.pipelines.erased_stable_diffusion import ErasedStableDiffusionPipeline
from erase.pipelines.erased_stable_diffusion_3 import ErasedStableDiffusion3Pipeline
from erase.pipelines.erased_stable_diffusion_xl import ErasedStableDiffusionXLPipeline

__all__ = [
    "ErasedFluxPipeline",
    "ErasedStableDiffusion3Pipeline",
    "ErasedStableDiffusionPipeline",
    "ErasedStableDiffusionXLPipeline",
    "erased",
]
