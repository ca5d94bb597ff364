"""Which object the bundled model draws instead of each: the nearest in what the denoiser predicts.

Run: `python scripts/object_anchors.py`; writes the anchors of all objects into concepts.json. Four
pictures of the object, noised at four times, are predicted under prompts of every other object in
the same styles; the anchor is the one whose prediction is nearest to the object's own. No judge
takes part. Five minutes of one core.
"""

import json

import torch
from torch import Tensor

from erase.bundled import EMOJI
from erase.core.seeds import seeded
from erase.models.opening import load_model
from erase.prompts.catalogue import FILE, Sampling
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.sampling import draw

TIMES, AT_ONCE = (300, 500, 700, 900), 8
DRAWN = Sampling(4, 4.0)


@torch.no_grad()
def distances(
    denoiser: ConditionedDenoiser, name: str, names: list[str], styles: list[str]
) -> Tensor:
    """How far the prediction for each of the names [n] is from that for one of them, squared."""
    texts = {other: [f"a {style} style {other}" for style in styles] for other in names}
    latents = draw(denoiser.pipeline, texts[name], range(len(styles)), DRAWN, "latent")
    noise = torch.randn(latents.shape, generator=seeded(0))
    batch = DiffusionBatch(latents, noise, torch.tensor(TIMES), texts[name], [])
    noisy, found = denoiser.noising.noisy(batch), []
    for start in range(0, len(names), AT_ONCE):
        part = [text for other in names[start : start + AT_ONCE] for text in texts[other]]
        count = len(part) // len(styles)
        text = denoiser.condition(part)
        found.append(
            denoiser.predict(noisy.repeat(count, 1, 1, 1), batch.timesteps.repeat(count), text)
        )
    every = torch.cat(found).unflatten(0, (len(names), len(styles)))
    return (every - every[names.index(name)]).square().flatten(1).mean(1)


def main() -> None:
    """Find and write the anchors."""
    model = load_model("emoji")
    names, styles = list(model.catalogue.objects), list(model.catalogue.styles)[: len(TIMES)]
    denoiser, path = ConditionedDenoiser(model.pipeline), EMOJI / FILE
    record = json.loads(path.read_text(encoding="utf-8"))
    for name in names:
        nearest = distances(denoiser, name, names, styles).argsort()[1]
        record["anchors"][name] = names[nearest]
        print(name, names[nearest], flush=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
