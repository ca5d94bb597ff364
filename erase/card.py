"""The model card an Erasure is published with: what it suppresses, how it was measured, limits."""

from collections.abc import Mapping
from typing import Any

CARD = """---
library_name: diffusers
tags: [diffusers-erase, concept-erasure]
---
# {concepts} suppressed in {model}

A `{method}` erasure made with diffusers-erase. It changes {tensors} weight tensors of the base
and can be taken back bit for bit.

## Use
```python
from diffusers import DiffusionPipeline
from erase import Erasure

pipeline = DiffusionPipeline.from_pretrained("{model}")
applied = Erasure.from_pretrained("THIS_FOLDER").apply(pipeline.components, scale=1.0)
applied.revert()
```

## Measured
{measured}

## Limits
The figures hold under the protocol above and no other. Erasure in weights is suppression, not
removal: prompts, embeddings or finetuning that were not measured may bring the concept back.
The licence of the base model applies.
"""


def render_card(recipe: Mapping[str, Any]) -> str:
    """The README.md of an erasure folder, from its recipe."""
    base = recipe.get("base", {})
    report = recipe.get("report")
    measured = "Not measured yet." if report is None else measured_lines(report)
    return CARD.format(
        concepts=", ".join(recipe.get("request", {}).get("concepts", ["A concept"])),
        model=base.get("model", "its base"),
        method=recipe.get("method", "custom"),
        tensors=len(base.get("fingerprints", {})),
        measured=measured,
    )


def measured_lines(report: Mapping[str, Any]) -> str:
    """The metrics of a report as a Markdown table with its protocol under it."""
    rows = ["| metric | base | erased | n |", "| --- | --- | --- | --- |"]
    metrics = report["metrics"]
    for name in report["accuracies"]:
        rows.append(
            f"| {name} | {interval(metrics['base'][name])} | {interval(metrics[name])} "
            f"| {metrics[name]['n']} |"
        )
    protocol = "; ".join(f"{key}: {value}" for key, value in report["protocol"].items())
    return "\n".join(rows) + f"\n\nProtocol: {protocol}."


def interval(accuracy: Mapping[str, float]) -> str:
    """`87.5 % [80.1, 92.4]`."""
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
