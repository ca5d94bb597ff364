"""The Erasure: a named set of weight deltas and the recipe that made them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from erase.card import render_card
from erase.core.delta import Delta, read_delta
from erase.files import replaced_folder

SCHEMA = 1
WEIGHTS, RECIPE, CARD = "deltas.safetensors", "erasure.json", "README.md"


@dataclass
class Erasure:
    """Deltas by canonical tensor name (`unet.conv_in.weight`) and a JSON-ready recipe.

    `recipe` holds `base` (model, fingerprints), `request`, `method`, `config`, `versions` and,
    once measured, `report`.
    """

    deltas: dict[str, Delta]
    recipe: dict[str, Any] = field(default_factory=dict)

    def apply(
        self,
        components: Mapping[str, nn.Module],
        scale: float = 1.0,
        allow_other_base: bool = False,
    ) -> "AppliedErasure":
        """Add `scale` times the deltas to the components' weights, until reverted.

        Raises ValueError, before anything is touched, if a tensor is missing, has another shape,
        or (unless `allow_other_base`) other values than the base this erasure was made for.
        """
        weights = {name: find_weight(components, name) for name in self.deltas}
        self._check_base(weights, allow_other_base)
        return AppliedErasure(self.deltas, weights, scale)

    def _check_base(self, weights: Mapping[str, Tensor], allow_other_base: bool) -> None:
        fingerprints = self.recipe.get("base", {}).get("fingerprints", {})
        for name, weight in weights.items():
            if weight.shape != self.deltas[name].shape:
                raise ValueError(
                    f"{name} has shape {list(weight.shape)} in this model and "
                    f"{list(self.deltas[name].shape)} in the erasure; load its own base."
                )
            if allow_other_base or name not in fingerprints:
                continue
            if fingerprint(weight) != fingerprints[name]:
                raise ValueError(
                    f"{name} differs from the base this erasure was made for; load that base, or "
                    "pass allow_other_base=True to apply it all the same."
                )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, recipe and card to `folder`, whole or not at all."""
        with replaced_folder(Path(folder), RECIPE) as partial:
            self.write(partial)

    def write(self, folder: Path) -> None:
        """Write the three files into an existing folder."""
        parts = {
            f"{name}:{part}": tensor.contiguous()
            for name, delta in self.deltas.items()
            for part, tensor in delta.tensors().items()
        }
        save_file(parts, folder / WEIGHTS, metadata={"erase_schema": str(SCHEMA)})
        record = {"schema": SCHEMA, **self.recipe}
        (folder / RECIPE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        (folder / CARD).write_text(render_card(record))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Erasure":
        """Read an erasure folder; raises ValueError naming the folder if it is not a whole one."""
        folder = Path(folder)
        try:
            record = json.loads((folder / RECIPE).read_text())
            parts = load_file(folder / WEIGHTS)
        except (OSError, json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(f"{folder} is not a readable erasure folder ({error}); give a folder "
                             "that save_pretrained wrote.") from error  # fmt: skip
        if record.pop("schema") != SCHEMA:
            raise ValueError(f"{folder} has another schema than {SCHEMA}; update diffusers-erase.")
        grouped: dict[str, dict[str, Tensor]] = {}
        for key, tensor in parts.items():
            name, part = key.rsplit(":", 1)
            grouped.setdefault(name, {})[part] = tensor
        return cls({name: read_delta(group) for name, group in grouped.items()}, record)

    def export_pipeline(self, pipeline: DiffusionPipeline, folder: str | Path) -> None:
        """Write the erased pipeline as a stock folder that plain diffusers opens."""
        with (
            replaced_folder(Path(folder), "model_index.json") as partial,
            self.apply(pipeline.components),
        ):
            pipeline.save_pretrained(partial)


class AppliedErasure:
    """An erasure in force; `revert` puts the very same bits back, as does leaving its context."""

    def __init__(self, deltas: Mapping[str, Delta], weights: Mapping[str, Tensor], scale: float):
        self._weights = weights
        self._originals = {name: weight.detach().clone() for name, weight in weights.items()}
        with torch.no_grad():
            for name, weight in weights.items():
                change = deltas[name].dense().to(weight.device)
                weight.copy_(weight + scale * change)

    @torch.no_grad()
    def revert(self) -> None:
        """Restore every weight bit for bit."""
        for name, original in self._originals.items():
            self._weights[name].copy_(original)

    def __enter__(self) -> "AppliedErasure":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.revert()


def find_weight(components: Mapping[str, nn.Module], name: str) -> Tensor:
    """The parameter with canonical name `component.path`; ValueError if there is none."""
    component, path = name.split(".", 1)
    module = components.get(component)
    try:
        return module.get_parameter(path)
    except AttributeError as error:
        raise ValueError(
            f"This model has no tensor {name}; load the base the erasure was made for."
        ) from error


def fingerprint(weight: Tensor) -> str:
    """16 hex digits of the SHA-256 of the float32 values, alike for a float16 copy of them."""
    values = weight.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]
