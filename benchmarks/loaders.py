"""How many layers of an erasure ComfyUI, A1111 and sd-scripts read of what is written for them.

Run: `python benchmarks/loaders.py`. Layers are those of published configs on the meta device; the
programs' names are those of erase/erasure/programs.py, which tests/test_loaders.py holds against
the programs' own.
"""

from collections.abc import Iterator, Mapping

from family_memory import models
from torch import nn

from erase.core.activations import projectable_layers
from erase.core.names import filter_names, lora_holds, named_parameters
from erase.erasure.programs import NAMINGS, layers_read
from erase.models.family import FAMILIES, Family


def erasures(family: Family, parts: dict[str, nn.Module]) -> Iterator[tuple[str, list[str]]]:
    """What projections and SalUn, cut to a LoRA, change: a title and the weights' names."""
    named = {n: p for n, p in named_parameters(parts).items() if p.ndim in (2, 4) and lora_holds(n)}
    entering = [pattern for patterns in family.enters.values() for pattern in patterns]
    yield "projection, text", list(filter_names(named, entering))
    for part in (*family.encoders, family.denoiser):
        layers = projectable_layers(parts[part], part)
        yield f"projection, {part}", [n for n in named if n.removesuffix(".weight") in layers]
    for part in (*family.encoders, family.denoiser):
        trained = filter_names(named, family.reads_text)
        yield f"SalUn, {part}", [name for name in trained if name.startswith(f"{part}.")]


def counts(names: list[str], family: str) -> list[str]:
    """Layers read of what is written for each program, then of a stock LoRA by any of them."""
    read = [
        f"{layers_read(names, of[family], family)[program]}" if family in of else "refused"
        for program, of in NAMINGS.items()
    ]
    stock = layers_read(names, "stock", family).values()
    return [*read, " / ".join(map(str, stock))]


def table(shown: Mapping[str, tuple[str, dict[str, nn.Module]]]) -> list[str]:
    """The rows of the table, in Markdown, for models by name: the family, what may change."""
    head = ("model", "erasure", "layers", *(f"`{name}`" for name in NAMINGS), "stock LoRA")
    rows = [head, ("---",) * len(head)]
    for model, (family, parts) in shown.items():
        for title, names in erasures(FAMILIES[family], parts):
            rows.append((model, title, str(len(names)), *counts(names, family)))
    return [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    print("\n".join(table(models())))
