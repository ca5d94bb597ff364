"""A protocol's pictures: each is drawn once, whoever draws it and however often it is stopped."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from erase.core.fingerprint import module_fingerprint
from erase.evaluate.base import protocol_hash
from erase.models.opening import Model
from erase.prompts.catalogue import Sampling
from erase.runs.prompt_file import PromptRow
from erase.support.distributed import all_gather, shard_of
from erase.support.files import replaced_file
from erase.support.pictures import open_picture
from erase.support.progress import Bar
from erase.tasks.diffusion.noising import settings_of
from erase.tasks.diffusion.sampling import at_once, draw


def drawing_digest(model: Model, rows: Sequence[PromptRow], steps: int) -> str:
    """What tells these pictures, of the model as it is now, from any others."""
    pipeline, scheduler = model.pipeline, model.pipeline.scheduler
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return protocol_hash(
        {
            "asked": [asdict(row) for row in rows],
            "steps": steps,
            "weights": [module_fingerprint(module) for module in modules],
            "computed": [str(pipeline.dtype), torch.device(model.device).type],
            "scheduler": [type(scheduler).__name__, str(sorted(settings_of(scheduler).items()))],
            "version": version("diffusers-erase"),
        }
    )


def draw_rows(model: Model, rows: Sequence[PromptRow], steps: int, paths: Sequence[Path]) -> None:
    """Write a PNG each, but for those that lie there already; each process draws its share.

    Whoever draws a picture, the same ones are drawn with it, for they decide its last bits.
    """
    with model.drawing() as pipeline:
        parts = list(shard_of(_drawn_together(rows, at_once(pipeline))))
        with Bar(total=len(parts), desc="pictures of the protocol", unit="batch") as bar:
            for part in parts:
                if not all(_lies_whole(paths[i]) for i in part):
                    texts, seeds = [rows[i].text for i in part], [rows[i].seed for i in part]
                    sampling = Sampling(steps, rows[part[0]].guidance_scale)
                    pictures = draw(pipeline, texts, seeds, sampling).float().clamp(0, 1)
                    for i, picture in zip(part, pictures, strict=True):
                        _save(picture, paths[i])
                bar.update()
    all_gather(None)  # those of all processes lie there


def _lies_whole(path: Path) -> bool:
    """Whether a picture is there that can be read."""
    try:
        return bool(open_picture(path))
    except ValueError:
        return False


def _save(picture: Tensor, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replaced_file(path) as partial:
        to_pil_image(picture).save(partial, format="PNG")


def _drawn_together(rows: Sequence[PromptRow], count: int) -> list[list[int]]:
    """The places of so many rows of one guidance scale at a time."""
    parts: list[list[int]] = []
    for scale in sorted({row.guidance_scale for row in rows}):
        places = [i for i, row in enumerate(rows) if row.guidance_scale == scale]
        parts += [places[start : start + count] for start in range(0, len(places), count)]
    return parts
