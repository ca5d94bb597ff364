"""Which object the bundled model draws instead of each: the nearest in what the denoiser predicts.

Run: `python scripts/object_anchors.py`; writes the anchors of all objects into concepts.json. Four
pictures of the object, noised at four times, are predicted under prompts of every other object in
the same styles; the anchor is the one whose prediction is nearest to the object's own, of those
whose own pictures the bundled judge never takes for the object: erasing well would show those. That
is asked of 16 pictures, at seeds of their own. Ten minutes of one core.
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from erase.bundled import EMOJI, JUDGE
from erase.core.seeds import seeded
from erase.evaluate.base import Judge
from erase.evaluate.pictures.judges import embedded_drawn, judge_of
from erase.models.opening import Model, load_model
from erase.prompts.catalogue import FILE, Sampling
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.sampling import draw

TIMES, AT_ONCE = (300, 500, 700, 900), 8
DRAWN = Sampling(4, 4.0)
SHOWN, FIRST_SEED = 8, 5_000  # pictures with a style and as many without, no other script's seeds


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


def taken_for(
    model: Model, judge: Judge, names: Sequence[str], styles: Sequence[str], anchor: str
) -> set[str]:
    """The objects that the judge sees in the anchor's own pictures, drawn as reports draw."""
    asked = [anchor] * SHOWN + [f"a {anchor} in {style} style" for style in styles[:SHOWN]]
    seeds = range(FIRST_SEED, FIRST_SEED + len(asked))
    pictures = draw(model.pipeline, asked, seeds, model.sampling, "pt")
    return set(judge.classify(embedded_drawn(judge, pictures.float()), "object", names))


def main() -> None:
    """Find and write the anchors."""
    model, seen = load_model("emoji"), {}
    judge = judge_of(f"local-dir:{JUDGE}", model.catalogue)
    names, styles = list(model.catalogue.objects), list(model.catalogue.styles)
    denoiser, path = ConditionedDenoiser(model.pipeline), EMOJI / FILE
    record = json.loads(path.read_text(encoding="utf-8"))
    for name in names:
        nearest = distances(denoiser, name, names, styles[: len(TIMES)]).argsort()[1:].tolist()
        for anchor in (names[number] for number in nearest):
            if anchor not in seen:
                seen[anchor] = taken_for(model, judge, names, styles, anchor)
            if name not in seen[anchor]:
                break
        print(name, "->", anchor, f"(was {record['anchors'][name]})", flush=True)
        record["anchors"][name] = anchor
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
