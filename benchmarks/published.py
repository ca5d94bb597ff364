"""How far each preset `published` is from its authors' formula, written down here anew.

Run: `python benchmarks/published.py`. It prints the table of docs/methods.md. Pictures are of the
bundled model, with bare names for prompts; classifiers are in published_classifiers.py. Every
formula is a transcription of the official code at the revision named, in float64 where that is
closed.
"""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from published_classifiers import OF_CLASSIFIERS, relative
from torch import Tensor, nn
from torch.nn import functional as F

from erase.core.mask import build_mask
from erase.core.saliency import accumulate
from erase.methods import get_method, preset_of
from erase.methods.esd import target
from erase.methods.salun import relabelling_loss
from erase.models.opening import load_model
from erase.prompts.catalogue import Sampling
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.task import DiffusionTask

ERASED, ANCHORS, KEPT = ("ghost", "ink style"), ("skull", "lemon"), ("pizza", "hamburger", "robot")
GUIDANCE, ALPHA = 7.5, 0.1
Arrays = dict[str, np.ndarray]


@cache
def task() -> DiffusionTask:
    """The bundled model and bare names."""
    request = EraseRequest(ERASED, ANCHORS, retain=KEPT, templates=("{concept}",))
    config = DiffusionTaskConfig(
        components=("unet",), forget_pictures=4, retain_pictures=4, generation_steps=2, batch_size=4
    )
    pipeline = load_model("emoji", "cpu").pipeline
    return DiffusionTask(pipeline, expand(request, None), Sampling(2, GUIDANCE), config)


@cache
def tokens(text: str) -> tuple[np.ndarray, int]:
    """The text encoder's [77, d], and which is the last of the subject."""
    pipeline = task().denoiser.pipeline
    read = pipeline.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = pipeline.text_encoder(read.input_ids)[0][0]
    return states.double().numpy(), int(read.attention_mask.sum()) - 2


def keys_and_values() -> Arrays:
    """The weights both closed forms edit."""
    named = task().denoiser.pipeline.unet.named_parameters()
    chosen = {n: w for n, w in named if "attn2.to_k" in n or "attn2.to_v" in n}
    return {f"unet.{name}": w.detach().double().numpy() for name, w in chosen.items()}


def solved(
    weight: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray, float]], ridge: float
) -> np.ndarray:
    """(ridge W + sum s v c^T) (ridge I + sum s c c^T)^-1 for rows c, W v and weights s."""
    left, right = ridge * weight, ridge * np.eye(weight.shape[1])
    for rows, wanted, scale in pairs:
        left = left + scale * (weight @ wanted.T) @ rows
        right = right + scale * rows.T @ rows
    return left @ np.linalg.inv(right)


def uce_weights() -> Arrays:
    """uce_sd_erase.py of unified-concept-editing 28c81ed: lambda .5, both scales 1."""
    last = {text: tokens(text)[0][[tokens(text)[1]]] for text in (*ERASED, *ANCHORS, *KEPT)}
    pairs = [(last[old], last[new], 1.0) for old, new in zip(ERASED, ANCHORS, strict=True)]
    pairs += [(last[text], last[text], 1.0) for text in KEPT]
    return {name: solved(weight, pairs, 0.5) for name, weight in keys_and_values().items()}


def rece_weights() -> Arrays:
    """train.py, close_form_emb_regzero and edit_model_adversarial of RECE 403a67f, after UCE."""
    base, edited = keys_and_values(), uce_weights()
    width = next(iter(base.values())).shape[1]
    for _ in range(3):
        first, second = 0.1 * np.eye(width), np.zeros((width, width))
        for name, weight in edited.items():
            first, second = first + weight.T @ weight, second + weight.T @ base[name]
        coefficient = np.linalg.inv(first) @ second
        pairs = [(tokens(old)[0] @ coefficient.T, tokens(new)[0], 1.0)
                 for old, new in zip(ERASED, ANCHORS, strict=True)]  # fmt: skip
        pairs += [(tokens(" ")[0], tokens(" ")[0], 0.1)] * len(ERASED)
        edited = {name: solved(weight, pairs, 0.1) for name, weight in edited.items()}
    return edited


def of_edit(method: str, formula: Callable[[], Arrays]) -> float:
    """The largest difference of a weight's change."""
    erasure, base = get_method(method)(task(), preset_of(method, "published")), keys_and_values()
    return max(
        relative(erasure.deltas[name].dense(), wanted - base[name])
        for name, wanted in formula().items()
    )


def predicted(batch: DiffusionBatch, prompts: list[str]) -> Tensor:
    """The UNet's own answer for the noised latents."""
    pipeline = task().denoiser.pipeline
    kept = pipeline.scheduler.alphas_cumprod[batch.timesteps][:, None, None, None]
    noisy = kept.sqrt() * batch.latents + (1 - kept).sqrt() * batch.noise
    states = torch.stack([torch.tensor(tokens(text)[0]).float() for text in prompts])
    return pipeline.unet(noisy, batch.timesteps, states).sample


def learnt(batch: DiffusionBatch) -> Tensor:
    """What the bundled model predicts, v where Stable Diffusion 1.4 has the noise."""
    scheduler = task().denoiser.pipeline.scheduler
    return scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)


def batches() -> Iterator[DiffusionBatch]:
    """The forget set, twice over with other noise."""
    for seed in (0, 1):
        yield from task().forget_batches(seed)


def esd() -> float:
    """esd_sd.py of erasing 25613d2: e(c) - 2 (e(c) - e("")), for the layers it would train."""
    batch = next(batches())
    with torch.no_grad():
        erased, null = (predicted(batch, list(p)) for p in (batch.prompts, [""] * len(batch)))
    preset = preset_of("esd", "published")
    trained = get_method("esd").needs(task(), preset).trained
    theirs = [
        f"unet.{name}.{part}"
        for name, module in task().denoiser.pipeline.unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and "attn2" in name
        for part, _ in module.named_parameters()
    ]
    same = sorted(trained) == sorted(theirs)
    return relative(target(task(), batch, preset), erased - 2 * (erased - null)) if same else np.inf


def salun() -> float:
    """generate_mask.py and random_label.py of Unlearn-Saliency a6e89fd: saliency, then the loss."""
    parameters, null = task().parameters(), [""] * 4
    ours = accumulate(parameters, map(task().saliency_loss, batches()))
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for batch in batches():
        guided = (1 + GUIDANCE) * predicted(batch, batch.prompts)
        guided = guided - GUIDANCE * predicted(batch, null)
        loss = -F.mse_loss(learnt(batch), guided)
        for name, grad in zip(
            total, torch.autograd.grad(loss, list(parameters.values())), strict=True
        ):
            total[name] += grad
    flat = torch.cat([score.abs().flatten() for score in total.values()])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[torch.argsort(-flat)[: int(len(flat) * 0.5)]] = True
    mask = torch.cat([part.flatten() for part in build_mask(ours, 0.5).tensors.values()])
    forget, retain = next(batches()), next(iter(task().retain_batches(2)))
    preset = preset_of("salun", "published")
    loss = relabelling_loss(task(), preset.teacher, preset.retain_weight)(forget, retain, 0.0)
    wanted = F.mse_loss(predicted(forget, forget.prompts), predicted(forget, forget.anchors))
    wanted = wanted + ALPHA * F.mse_loss(predicted(retain, retain.prompts), learnt(retain))
    saliencies = (relative(ours[name], total[name].abs()) for name in total)
    return max(relative(mask, kept), relative(loss, wanted), *saliencies)


def concept_ablation() -> float:
    """train.py of concept-ablation c11fb1b: the model's own answer for the anchor, detached."""
    batch = next(batches())
    wanted = F.mse_loss(predicted(batch, batch.prompts), predicted(batch, batch.anchors).detach())
    preset = preset_of("concept_ablation", "published")
    held = preset.retain_weight or preset.teacher != "current"
    return np.inf if held else relative(task().redirected_loss(batch, None), wanted)


DIFFERENCES: dict[str, Callable[[], float]] = {
    "concept_ablation": concept_ablation,
    "esd": esd,
    "rece": lambda: of_edit("rece", rece_weights),
    "salun": salun,
    "uce": lambda: of_edit("uce", uce_weights),
    **OF_CLASSIFIERS,
}


def main() -> None:
    """Print the table."""
    print("| method | largest relative difference |\n| --- | --- |")
    for name, difference in sorted(DIFFERENCES.items()):
        print(f"| `{name}` | {difference():.1e} |")


if __name__ == "__main__":
    main()
