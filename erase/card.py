"""The model card an Erasure is published with: what it suppresses, how it was measured, limits."""

from collections.abc import Mapping
from typing import Any

CARD = """---
library_name: {library}
base_model: {model}
tags: [diffusers-erase, concept-erasure]
---
# {concepts}: a {method} erasure of {model}

Made with diffusers-erase. It changes {tensors} weight tensors of the base and can be taken back
bit for bit.

## Use
```python
{use}
```

## Measured
{measured}

## Limits
The figures hold under the protocol above and no other. Erasure in weights is suppression, not
removal: prompts, embeddings or finetuning that were not measured may bring the concept back.
The licence of the base model applies.
"""

USE = """from erase import Erasure, load_model

pipeline = load_model("{model}").pipeline
applied = Erasure.from_pretrained("THIS_FOLDER").apply(pipeline.components, scale=1.0)
applied.revert()"""
USE_LORA = """# A stock LoRA: plain diffusers is enough. `pipeline` is the base, {model}.
pipeline.load_lora_weights("THIS_FOLDER")"""

USE_CLASSIFIER = """from erase import Erasure

# `classifier` is the base, {model}.
applied = Erasure.from_pretrained("THIS_FOLDER").apply({{"model": classifier}})
applied.revert()"""


def render_card(recipe: Mapping[str, Any], tensors: int, stock_lora: bool = False) -> str:
    """The README.md of an erasure folder, from its recipe and how many tensors change."""
    base = recipe.get("base", {})
    report = recipe.get("report")
    measured = "Not measured yet." if report is None else _measured(report)
    classifier = any(name.startswith("model.") for name in base.get("fingerprints", {}))
    if "truncation" in recipe:
        cut = recipe["truncation"]
        measured += (
            "\n\nThese figures are of the whole erasure. This LoRA is it cut to rank "
            f"{cut['rank']}, with a relative error of {cut['relative_error']} in the weights."
        )
    model = base.get("model", "its base")
    use = USE_CLASSIFIER if classifier else USE_LORA if stock_lora else USE
    return CARD.format(
        concepts=", ".join(recipe.get("request", {}).get("concepts", ["A concept"])),
        model=model,
        library="pytorch" if classifier else "diffusers",
        use=use.format(model=model),
        method=recipe.get("method", "custom"),
        tensors=tensors,
        measured=measured,
    )


def _measured(report: Mapping[str, Any]) -> str:
    return report["table"] if "table" in report else measured_lines(report)


def measured_lines(report: Mapping[str, Any]) -> str:
    """The metrics of a report as a Markdown table with its protocol under it."""
    rows = ["| metric | base | erased | n |", "| --- | --- | --- | --- |"]
    rows += [f"| {' | '.join(map(str, row))} |" for row in metric_rows(report)]
    protocol = "; ".join(f"{key} {_plain(value)}" for key, value in report["protocol"].items())
    return "\n".join(rows) + f"\n\nProtocol: {protocol}."


def metric_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, int]]:
    """Name, base, erased and n of every figure: pooled accuracies, each concept's, CLIP score."""
    after, before = report["metrics"], report["metrics"]["base"]
    rows = [
        (name.replace("_", " "), interval(before[name]), interval(after[name]), after[name]["n"])
        for name in report["accuracies"]
    ]
    by_concept = after["forget_accuracy_by_concept"]
    if len(by_concept) > 1:
        earlier = before["forget_accuracy_by_concept"]
        rows += [
            (f"forget {name}", interval(earlier[name]), interval(figure), figure["n"])
            for name, figure in by_concept.items()
        ]
    score = after["clip_score"]
    before_score = f"{before['clip_score']['value']:.3f}"
    return [*rows, ("CLIP score, retained", before_score, f"{score['value']:.3f}", score["n"])]


def interval(accuracy: Mapping[str, Any]) -> str:
    """`87.5 % [80.1, 92.4]`."""
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{item} {key}" for key, item in value.items())
    return str(value)
