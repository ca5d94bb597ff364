"""What it costs at real shapes to edit pipelines of classes that are learned.

Run: `PYTHONPATH=tests python benchmarks/learned_memory.py`. A tiny pipeline of each class tells
which layers hear text; the same layers are looked up in a denoiser of the class's default config on
the meta device. So this is arithmetic as family_memory.py's: bytes a weight, no activations, no
text encoders, no VAE; training is SalUn's, of half of what hears text. Classes of a default config
that is not whole, or lacks a layer through which text enters, are named at the end, and those of
UNet2DConditionModel, whose default is another pipeline's.
"""

from fnmatch import fnmatchcase

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from family_memory import line, print_head, size
from tiny_classes import BUILDERS
from torch import nn

from erase.core.names import named_parameters
from erase.models.learned import LearnedFamily, learned
from erase.models.text_layers import shortened


def real(pipeline: DiffusionPipeline, known: LearnedFamily) -> dict[str, nn.Module]:
    """Denoisers of the classes' default configs, without values; none where there are none."""
    kinds = {name: type(getattr(pipeline, name)) for name in known.names}
    if UNet2DConditionModel in kinds.values():
        return {}
    try:
        with torch.device("meta"):
            modules = {name: kind() for name, kind in kinds.items()}
    except TypeError:  # an argument without a value of its own
        return {}
    there = named_parameters(modules)
    whole = all(any(fnmatchcase(name, one) for name in there) for one in entering(known))
    return modules if whole else {}


def entering(known: LearnedFamily) -> list[str]:
    """Patterns of the weights through which text enters."""
    return patterns([name for names in known.enters.values() for name in names])


def row(known: LearnedFamily, modules: dict[str, nn.Module]) -> str:
    """One class's line of the table, without its name."""
    hears = [f"{pattern}.*" for pattern in patterns([*known.text, *known.timed])]
    weights = named_parameters(modules)
    whole = line("", size(list(weights.values())), weights, hears, entering(known))
    return whole.removeprefix("|  ")


def patterns(names: list[str]) -> list[str]:
    """Names with stars for their numbers; a tiny model has fewer blocks."""
    return shortened(names).split(", ") if names else []


def main() -> None:
    """Print the table."""
    print_head()
    lines, without = set[str](), []
    for build in BUILDERS.values():
        pipeline = build()
        known = learned(pipeline)
        modules = real(pipeline, known)
        if not modules:
            without.append(known.pipeline)
        elif (figures := row(known, modules)) not in lines:  # others share a denoiser
            lines.add(figures)
            print(f"| {known.pipeline.removesuffix('Pipeline')} {figures}", flush=True)
    print(f"\nNo such default config: {', '.join(without)}.")


if __name__ == "__main__":
    main()
