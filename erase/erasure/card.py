"""The model card an Erasure is published with: what it suppresses, how it was measured, limits."""

import json
import re
from collections.abc import Collection

from huggingface_hub.utils import HFValidationError, validate_repo_id

from erase.erasure.recipe import Recipe
from erase.prompts.names import shortened
from erase.support.files import expanded

CARD = """---
library_name: {library}
{base}tags: [diffusers-erase, concept-erasure]
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
{scope}Erasure in weights is suppression, not
removal: prompts, embeddings or finetuning that were not measured may bring the concept back.
The licence of the base model applies.
"""

SCOPE = "The figures hold under the protocol above and no other. "
USE = """from erase import Erasure, load_model

pipeline = load_model({named}{how}).pipeline
applied = Erasure.from_pretrained("THIS_FOLDER").apply(pipeline.components, scale=1.0)
applied.revert()"""
USE_LORA = """# A stock LoRA: plain diffusers is enough. `pipeline` is the base, {named}.
pipeline.load_lora_weights("THIS_FOLDER")
# ComfyUI, A1111 and sd-scripts read what `erase export --for` makes of it."""

USE_CLASSIFIER = """from erase import Erasure

# `classifier` is the base, {named}.
applied = Erasure.from_pretrained("THIS_FOLDER").apply({{"model": classifier}})
applied.revert()"""


def render_card(facts: Recipe, changed: Collection[str], stock_lora: bool = False) -> str:
    """The README.md of an erasure folder, from its recipe and the names of what it changes."""
    classifier = any(name.startswith("model.") for name in changed)
    use = USE_CLASSIFIER if classifier else USE_LORA if stock_lora else USE
    model = facts.base.model or "its base"
    named = _quoted(model)
    how = "".join(f", {name}={_quoted(value)}" for name, value in facts.base.own_files.items())
    return CARD.format(
        concepts=_plain(shortened(facts.concepts or ["A concept"])),
        model=_plain(model),
        base=f"base_model: {named}\n" if _is_hub_id(model) else "",
        library="pytorch" if classifier else "diffusers",
        use=use.format(named=named, how=how),
        method=_plain(facts.method or "custom"),
        tensors=len(changed),
        measured=_measured(facts),
        scope=SCOPE if facts.report is not None else "",
    )


def _is_hub_id(model: str) -> bool:
    """Whether a hub may know it; of any other base model a hub refuses the whole card."""
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return not expanded(model).exists()


def _quoted(text: str) -> str:
    """The text as YAML and Python read it."""
    return json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    """The text as Markdown shows it, in one line, whatever it holds."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(text.split()))


def _measured(facts: Recipe) -> str:
    measured = "Nothing was measured yet."
    if facts.report is not None:
        measured = facts.report.get("table", "Its figures are in erasure.json.")
    if not (cut := facts.truncation):
        return measured
    of_whole = facts.report and facts.report.get("protocol", {}).get("rank") != cut.rank
    told = "These figures are of the whole erasure, not of this LoRA. " if of_whole else ""
    return (
        f"{measured}\n\n{told}This LoRA is the whole erasure cut to rank {cut.rank}, with a "
        f"relative error of {cut.relative_error} in the weights."
    )
