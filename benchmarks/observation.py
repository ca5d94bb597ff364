"""What a model does under a protocol, how far that is from the oracle, and its worst prompts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from erase.core.fingerprint import combined, fingerprint
from erase.evaluate.base import Judge, protocol_hash
from erase.evaluate.pictures.fidelity import kernel_distance
from erase.evaluate.pictures.generation import (
    SIDES,
    EvaluationConfig,
    by_side,
    draw_evaluation,
    judge_drawn,
)
from erase.evaluate.pictures.judges import embedded_drawn, judge_protocol
from erase.evaluate.reports import ACCURACIES
from erase.prompts.catalogue import Sampling
from erase.prompts.request import PromptSet
from erase.support.config import require_kind
from erase.support.errors import cut, first_line
from erase.support.files import read_tensors, replaced_file
from erase.tasks.classification.forget_sets import worst_classes
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.loop import step_seed

NOISE_SEED = 5_000_000
CHUNK = 64
HEADER = "observation"
DIMENSIONS = {"features": 2, "predictions": 4}
LARGEST = 1e4  # so that the cubes of products, which distances take, are finite


@dataclass(frozen=True)
class CaptionedPictures:
    """Pictures [n, 3, H, W] in 0..1 that no model drew, and a caption for each."""

    pictures: Tensor
    captions: Sequence[str]


@dataclass(frozen=True)
class Observation:
    """What one model does under a protocol, small enough to publish in place of its weights.

    metrics: the judge's accuracies. features: the judge's embeddings [n, d] of what the model drew
    for forget and for retain prompts. predictions: the model's outputs for noised pictures of both.
    """

    protocol: Mapping[str, Any]
    metrics: Mapping[str, Any]
    features: Mapping[str, Tensor]
    predictions: Mapping[str, Tensor]

    def save(self, path: Path) -> None:
        """Write one safetensors file, predictions in half precision."""
        tensors = {f"features.{side}": self.features[side] for side in SIDES}
        tensors |= {f"predictions.{side}": self.predictions[side].half() for side in SIDES}
        header = json.dumps({"protocol": self.protocol, "metrics": self.metrics}, sort_keys=True)
        with replaced_file(path) as partial:
            save_file({k: t.contiguous() for k, t in tensors.items()}, partial, {HEADER: header})

    @classmethod
    def load(cls, path: Path) -> "Observation":
        """Read what `save` wrote; ValueError for any other file."""
        try:
            tensors, metadata = read_tensors(path)
            header = json.loads(metadata[HEADER])
            parts = [_of_both(tensors, part, dim) for part, dim in DIMENSIONS.items()]
            for name in ("protocol", "metrics"):
                require_kind(name, header[name], Mapping[str, Any])
            for name in set(ACCURACIES) & header["metrics"].keys():
                require_kind(name, header["metrics"][name]["value"], float)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} holds no observation ({first_line(error)}); make one first."
            ) from error
        return cls(header["protocol"], header["metrics"], *parts)


def _of_both(tensors: Mapping[str, Tensor], part: str, dimensions: int) -> dict[str, Tensor]:
    found = {side: tensors[f"{part}.{side}"].float() for side in SIDES}
    for side, tensor in found.items():
        if tensor.dim() != dimensions or not tensor.numel() or tensor.abs().max() > LARGEST:
            raise ValueError(f"{part}.{side} is of shape {list(tensor.shape)}, or too large")
    return found


def observe(
    pipeline: DiffusionPipeline,
    prompts: PromptSet,
    real: Mapping[str, CaptionedPictures],
    sampling: Sampling,
    judge: Judge,
    config: EvaluationConfig,
) -> Observation:
    """Draw the evaluation prompts, and predict noised `real` pictures of "forget" and "retain".

    Noise and time steps are alike for every model; so are the latents, if the VAE is.
    """
    drawn = draw_evaluation(pipeline, prompts, sampling, config, "observing")
    protocol = {
        **judge_protocol(judge),
        "evaluation": asdict(config),
        "sampling": asdict(sampling),
        "prompts": protocol_hash({"texts": [prompt.text for prompt in drawn.prompts]}),
        "real": protocol_hash({side: list(real[side].captions) for side in SIDES}),
        "real_pictures": combined(fingerprint(real[side].pictures) for side in SIDES),
    }
    embeddings = embedded_drawn(judge, drawn.pictures)
    return Observation(
        protocol,
        judge_drawn(drawn, judge, prompts.labels, embeddings).to_json(),
        by_side(embeddings, drawn.forget_count),
        {side: predictions(pipeline, real[side]) for side in SIDES},
    )


@torch.no_grad()
def predictions(pipeline: DiffusionPipeline, real: CaptionedPictures) -> Tensor:
    """The denoiser's outputs [n, C, h, w] for the pictures, noised, under their captions."""
    model = ConditionedDenoiser(pipeline, real.pictures.shape[-1])
    generator, found = torch.Generator().manual_seed(NOISE_SEED), []
    for start in range(0, len(real.captions), CHUNK):
        captions = list(real.captions[start : start + CHUNK])
        latents = model.latents(real.pictures[start : start + CHUNK])
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        timesteps = model.noising.draw_timesteps(len(captions), generator).to(latents.device)
        batch = DiffusionBatch(latents, noise, timesteps, captions, [])
        found.append(model.denoise(batch, model.condition(captions)).float().cpu())
    return torch.cat(found)


def distance_to_oracle(model: Observation, oracle: Observation) -> dict[str, Any]:
    """Accuracy gaps (model - oracle), and for both sides kernel distance and prediction error.

    The prediction error is the mean squared difference of the two models' outputs. Raises
    ValueError for observations of different protocols.
    """
    if dict(model.protocol) != dict(oracle.protocol):
        names = sorted({*model.protocol, *oracle.protocol})
        keys = [key for key in names if model.protocol.get(key) != oracle.protocol.get(key)]
        raise ValueError(
            f"The two observations differ in {cut(', '.join(keys))}; make both under one protocol."
        )
    for part in DIMENSIONS:
        for side in SIDES:
            shapes = {getattr(one, part)[side].shape[1:] for one in (model, oracle)}
            if len(shapes) > 1:
                raise ValueError(f"The two observations' {part} differ in shape; make both anew.")
    known = [name for name in ACCURACIES if name in model.metrics and name in oracle.metrics]
    gaps = {n: round(model.metrics[n]["value"] - oracle.metrics[n]["value"], 4) for n in known}
    kernels = {s: kernel_distance(model.features[s], oracle.features[s]).to_json() for s in SIDES}
    errors = {
        side: {
            "value": float(F.mse_loss(model.predictions[side], oracle.predictions[side])),
            "n": len(oracle.predictions[side]),
        }
        for side in SIDES
    }
    return {"accuracy_gap": gaps, "kernel_distance": kernels, "prediction_mse": errors}


@torch.no_grad()
def prompt_losses(task: DiffusionTask, passes: int = 4) -> tuple[list[str], Tensor]:
    """A diffusion task's forget prompts and the model's loss on their pictures [n].

    Ask for every candidate concept, unlearn, and `select` ranks the prompts, `worst_concepts` the
    concepts that the model as it is still fits best. Every picture is noised `passes` times.
    """
    found: dict[str, list[Tensor]] = {}
    for number in range(passes):
        for batch in task.forget_batches(step_seed(task.seed, number)):
            errors = task.denoiser.errors(batch, task.predict(batch, batch.prompts))
            for text, loss in zip(batch.prompts, errors, strict=True):
                found.setdefault(text, []).append(loss.cpu())
    losses = {text: torch.stack(of_text).mean() for text, of_text in sorted(found.items())}
    return list(losses), torch.stack(list(losses.values()))


def worst_concepts(task: DiffusionTask, count: int = 1, passes: int = 4) -> list[str]:
    """The concepts of lowest mean loss over their prompts, lowest first."""
    texts, losses = prompt_losses(task, passes)
    groups = {prompt.text: prompt.group for prompt in task.prompts.forget}
    names = sorted({groups[text] for text in texts})
    classes = torch.tensor([names.index(groups[text]) for text in texts])
    return [names[number] for number in worst_classes(losses, classes, count)]
