"""The model card an Erasure is published with: what it suppresses, how it was measured, limits."""

from collections.abc import Mapping, Sequence
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
    head = ["metric", *columns(report), "n"]
    rows = [head, ["---"] * len(head), *metric_rows(report)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    protocol = "; ".join(f"{key} {_plain(value)}" for key, value in report["protocol"].items())
    return "\n".join(lines) + f"\n\nProtocol: {protocol}."


def columns(report: Mapping[str, Any]) -> list[str]:
    """The models that a report compares."""
    return ["base", "erased"] + (["oracle"] if report["metrics"].get("oracle") else [])


def metric_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Name, a cell a column, and n of every figure.

    Those are pooled accuracies, each concept's, the CLIP score, and distances to the oracle.
    """
    after = report["metrics"]
    judged = [after if name == "erased" else after[name] for name in columns(report)]

    def row(name: str, figures: Sequence[Mapping[str, Any]]) -> list[str]:
        return [name, *map(interval, figures), str(figures[0]["n"])]

    rows = [row(n.replace("_", " "), [one[n] for one in judged]) for n in report["accuracies"]]
    groups = after["forget_accuracy_by_concept"]
    if len(groups) > 1:
        rows += [
            row(f"forget {group}", [one["forget_accuracy_by_concept"][group] for one in judged])
            for group in groups
        ]
    scores = [one["clip_score"] for one in judged]
    rows.append(
        ["CLIP score, retained", *(f"{s['value']:.3f}" for s in scores), str(scores[0]["n"])]
    )
    return rows + _distance_rows(after.get("distance_to_oracle") or {})


def _distance_rows(distances: Mapping[str, Any]) -> list[list[str]]:
    """KID on the judge's features for both sides; the oracle's to itself is nothing to tell."""
    sides = distances["erased"] if distances else ()
    return [
        [
            f"KID to oracle, {side}",
            *(f"{distances[name][side]['value']:.4f}" for name in ("base", "erased")),
            "",
            str(distances["erased"][side]["n"][0]),
        ]
        for side in sides
    ]


def interval(accuracy: Mapping[str, Any]) -> str:
    """`87.5 % [80.1, 92.4]`."""
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{item} {key}" for key, item in value.items())
    return str(value)
