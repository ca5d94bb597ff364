"""How a pipeline of any class is called: for the smallest picture, and without guidance."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from erase.models.cuts import places_of
from erase.models.listening import Call, Draw, Listener, leaves
from erase.prompts.catalogue import Sampling
from erase.support.errors import first_line

PROMPT = "a ghost"
STEPS = 4  # with fewer a denoiser for much noise is heard before the first step only
SIDES, FRAMES = (16, 32, 64, 128, 256, 512, 0), (9, 8, 16)
SHORT = 256  # tokens
FEWEST = 192  # numbers in a picture's latents, so that chance makes none alike
GUIDANCE = ("guidance_scale", "true_cfg_scale")
FRAME_NAMES = ("num_frames", "frames", "video_length")
# What every call is given where the class asks for it, since it can't be heard.
OVERRIDES: Mapping[str, tuple[Any, str]] = {
    "use_resolution_binning": (False, "sizes are to be those that were asked for"),
    "clean_caption": (False, "prompts are to be read as they are"),
    "enable_prompt_rewrite": (False, "prompts are to be read as they are"),
    "use_pe": (False, "prompts are to be read as they are"),
    "render_text_images": (False, "quoted words are to be read as they are"),
    "sample_audio": (False, "sound is other latents, beside those of pictures"),
    "use_kv_cache": (False, "keys are to be those of the weights of now"),
    "pag_scale": (0.0, "perturbed attention is guidance, and is off before a call is made again"),
    "guidance_schedule": (None, "stands in the way of guidance_scale"),
    "intermediate_timesteps": (None, "allows two steps only"),
}


@dataclass(frozen=True)
class Calling:
    """How a class is called.

    options: besides prompt, size and steps. smallest: size, frames and tokens of the smallest
    picture. guidance: the argument that sets it. unguided: what turns it off; None if nothing need.
    called: the modules that are called at every step. sampling: how it draws if not told.
    """

    options: Mapping[str, Any]
    smallest: Mapping[str, int]
    guidance: str
    unguided: float | None
    called: Sequence[str]
    sampling: Sampling

    def listener(
        self, pipeline: DiffusionPipeline, side: int | None = None, **options: Any
    ) -> Listener:
        """What listens to unguided calls of one picture `side` pixels wide.

        By default it is the smallest, 0 is as many as the pipeline draws by itself.
        """
        size = self.smallest if side is None else self._size(pipeline, side)
        given = {**self.options, **size, "num_inference_steps": STEPS, **options}
        return Listener(pipeline, given, self.called)

    def _size(self, pipeline: DiffusionPipeline, side: int) -> dict[str, int]:
        """The arguments of a size, with as few frames as the smallest has."""
        names = [name for name in ("height", "width") if side and name in asked_by(pipeline)]
        frames = {name: count for name, count in self.smallest.items() if name in FRAME_NAMES}
        return dict.fromkeys(names, side) | frames

    def drawer(self, pipeline: DiffusionPipeline, sampling: Sampling, output: str) -> Listener:
        """What draws as the pipeline does for others, guided so."""
        given = {**self.options, **self._size(pipeline, sampling.size)}
        given |= {name: sampling.guidance_scale for name in GUIDANCE if name in asked_by(pipeline)}
        given |= {"num_inference_steps": sampling.steps}
        return Listener(pipeline, given | ({"output_type": output} if output else {}), (), True)


def nothing(call: Call, raw: Tensor) -> Tensor:
    """An answer [...] that predicts nothing, so that prompts change no latents."""
    return torch.zeros_like(raw)


def asked_by(
    pipeline: DiffusionPipeline | type[DiffusionPipeline],
) -> Mapping[str, inspect.Parameter]:
    """The arguments of a pipeline's call."""
    return inspect.signature(pipeline.__call__).parameters


def overrides_of(pipeline: DiffusionPipeline | type[DiffusionPipeline]) -> dict[str, Any]:
    """The overrides that it asks for."""
    asks = asked_by(pipeline)
    return {name: value for name, (value, _) in OVERRIDES.items() if name in asks}


def sampling_of(pipeline: DiffusionPipeline | type[DiffusionPipeline]) -> Sampling:
    """The steps and the guidance of a call that names neither."""
    asks = asked_by(pipeline)
    guidance = next((name for name in GUIDANCE if name in asks), "")
    known = {name: asks[name].default for name in ("num_inference_steps", guidance) if name in asks}
    steps = known.get("num_inference_steps") or Sampling.steps
    return Sampling(steps, float(known.get(guidance) or 0.0))


def calling_of(pipeline: DiffusionPipeline, tokens: int | None = SHORT) -> Calling:
    """How to call it; ValueError if it draws at no size."""
    asks = asked_by(pipeline)
    options = overrides_of(pipeline)
    guidance = [name for name in GUIDANCE if name in asks]
    modules = {n: m for n, m in pipeline.components.items() if isinstance(m, nn.Module)}
    few = _fewer_tokens(pipeline, tokens)
    heard, smallest, chosen = Draw(), dict[str, int](), options
    failed: Exception | None = None
    for size, output in product(_sizes(asks), ("latent", "pt")):
        told = options | {"output_type": output}
        tried = told | dict.fromkeys(guidance, 1.0) | {"num_inference_steps": STEPS}
        try:
            draw = Listener(pipeline, tried | size | few, list(modules)).draw(PROMPT)
        except Exception as error:  # each class refuses what it does not draw in its own way
            failed = failed or error
            continue
        if draw.result.numel() > heard.result.numel():
            heard, smallest, chosen = draw, size | few, told
        if heard.result.numel() >= FEWEST:
            break
    if not heard.result.numel():
        why = first_line(failed) if failed else "its scheduler takes no step"
        raise ValueError(f"it draws at none of the sides {SIDES[:-1]} ({why})")
    called = _called_at_every_step(heard, modules)
    unguided = _unguided(pipeline, chosen | smallest, guidance, called)
    if unguided is not None:
        chosen |= dict.fromkeys(guidance, unguided)
    name = next(iter(guidance), "")
    return Calling(chosen, smallest, name, unguided, called, sampling_of(pipeline))


def _fewer_tokens(pipeline: DiffusionPipeline, tokens: int | None) -> dict[str, int]:
    """What has prompts read as so many tokens, if they would be as more."""
    asked = asked_by(pipeline).get("max_sequence_length")
    usual = asked.default if asked else None
    return {asked.name: tokens} if asked and tokens and (usual or 0) > tokens else {}


def _sizes(asks: Collection[str]) -> Iterator[dict[str, int]]:
    """Sizes to try, small ones first; that of its own last."""
    sides = SIDES if "height" in asks else (0,)
    frames = next((name for name in FRAME_NAMES if name in asks), "")
    for side, count in product(sides, (*FRAMES, 0) if frames else (0,)):
        size = {"height": side, "width": side} if side else {}
        yield size | ({frames: count} if count else {})


def _called_at_every_step(draw: Draw, modules: Mapping[str, nn.Module]) -> list[str]:
    """The modules that are called between steps, and those of their classes that are called."""
    last = len(draw.samples)
    kinds = {type(modules[call.who]) for call in draw.calls if 0 < call.step < last}
    return [name for name, m in modules.items() if type(m) in kinds and draw.of(name)]


def _unguided(
    pipeline: DiffusionPipeline, options: Mapping[str, Any], names: list[str], called: list[str]
) -> float | None:
    """What makes a step one call for one picture; None if it is that by default.

    Where nothing does, what should: 1.
    """
    tried: list[tuple[int, bool, int, float | None]] = []
    for value in (None, 1.0, 0.0) if names else (None,):
        given = {} if value is None else dict.fromkeys(names, value)
        listener = Listener(pipeline, {**options, **given, "num_inference_steps": STEPS}, called)
        try:
            calls = _calls_a_step(listener.draw(PROMPT, answer=nothing), called)
        except Exception:  # what an empty negative prompt does can't be foreseen
            if value == 1.0:
                raise
            continue
        tried.append((calls, calls > 1 and value != 1.0, len(tried), value))
        if calls == 1:
            break
    return min(tried)[-1]


def _calls_a_step(draw: Draw, called: list[str]) -> int:
    """How many calls of a module are made in a step, times how many pictures each is given."""
    calls = max(
        sum(call.who == name and call.step == step for call in draw.calls)
        for name in called for step in range(len(draw.samples))
    )  # fmt: skip
    pictures = max(
        sum(_times_held(leaf, draw.samples[0]) for leaf in leaves(call.arguments).values())
        for call in draw.calls if call.step == 0
    )  # fmt: skip
    return calls * max(pictures, 1)


def _times_held(leaf: Any, sample: Tensor) -> int:
    large = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return len(list(places_of(sample, leaf))) if large and leaf.numel() >= sample.numel() else 0
