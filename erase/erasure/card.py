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
    measured = (
        "Not measured yet."
        if report is None
        else report.get("table", "Its figures are in erasure.json.")
    )
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
