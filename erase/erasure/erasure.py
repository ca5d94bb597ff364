"""The Erasure: a named set of weight deltas and the recipe that made them."""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
from torch import Tensor, nn

from erase.core.delta import Delta
from erase.core.names import (
    find_rows,
    holds_numbers,
    require_in_force,
    require_nothing_added,
    unwrapped,
    way_to,
)
from erase.core.process import own_settings
from erase.erasure.card import render_card
from erase.erasure.recipe import Recipe
from erase.erasure.weights import DELTAS, LORA, PROJECTIONS, read_deltas, shared_bases, write_deltas
from erase.models.stock import plain_pipeline
from erase.prompts.catalogue import FILE as CATALOGUE
from erase.support.errors import refused
from erase.support.files import (
    expanded,
    put_back,
    read_json,
    replaced_folder,
    write_json,
    write_text,
)

logger = logging.getLogger(__name__)
SCHEMA = 1
RECIPE, CARD = "erasure.json", "README.md"
FILES = (RECIPE, CARD, LORA, DELTAS, PROJECTIONS)
LARGEST_RECIPE = 1 << 22  # bytes, four times what thousands of layers take


@dataclass
class Erasure:
    """Deltas by canonical tensor name (`unet.conv_in.weight`) and a JSON-ready recipe.

    `recipe` holds `base` (model, fingerprints), `request`, `method`, `config`, `versions` and,
    once measured, `report`; `facts` are what the library reads of it.
    """

    deltas: Mapping[str, Delta]
    recipe: dict[str, Any] = field(default_factory=dict)

    @own_settings()
    def apply(
        self,
        components: Mapping[str, nn.Module],
        scale: float = 1.0,
        allow_other_base: bool = False,
    ) -> "AppliedErasure":
        """Add `scale` times the deltas to the components' weights, until reverted.

        Raises ValueError, before anything is touched, if a tensor is missing, has another shape,
        or (unless `allow_other_base`) other values than the base this erasure was made for, and
        where the weights do not decide what is drawn, as those of fused attention.
        """
        weights = {n: find_rows(components, n, delta.shape) for n, delta in self.deltas.items()}
        require_in_force(_on_all_ways(components, self.deltas), weights)
        self._check_base(weights, allow_other_base)
        return AppliedErasure(self.deltas, components, weights, scale)

    def _check_base(self, weights: Mapping[str, Tensor], allow_other_base: bool) -> None:
        base = self.facts.base
        for name, weight in weights.items():
            if weight.shape != self.deltas[name].shape:
                raise ValueError(
                    f"{name} has shape {list(weight.shape)} in this model and "
                    f"{list(self.deltas[name].shape)} in the erasure; load its own base."
                )
            if weight.is_inference():
                raise ValueError(f"{name} was made under torch.inference_mode and cannot change; "
                                 "open the model outside of that.")  # fmt: skip
            if not allow_other_base and not base.is_of(name, weight):
                known_in = " or ".join(dict.fromkeys((base.dtype, "float32")))
                raise ValueError(
                    f"{name} differs from the base this erasure was made for, which was in "
                    f"{base.dtype}; load that base in {known_in}, or pass "
                    "allow_other_base=True to apply it all the same."
                )

    @property
    def facts(self) -> Recipe:
        """The recipe as types; ValueError naming a part that is of another type."""
        return Recipe.read(self.recipe)

    @property
    def base_model(self) -> str:
        """The name of the model it was made for; ValueError if nobody has noted it."""
        if not (model := self.facts.base.model):
            raise ValueError("The erasure does not say for which model it was made; name --model.")
        return model

    @property
    @own_settings()
    def nbytes(self) -> int:
        """The size of its tensors, as written."""
        parts = [t for delta in self.deltas.values() for t in delta.tensors().values()]
        return sum(tensor.nbytes for tensor in [*parts, *shared_bases(self.deltas)[0].values()])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, recipe and card to `folder`, whole or not at all."""
        with replaced_folder(Path(folder), FILES) as partial:
            self.write(partial)

    @own_settings()
    def write(self, folder: Path) -> Path:
        """Write the three files into an existing folder; the path of the weights."""
        path = write_deltas(self.deltas, folder, self.facts.base.loads_lora)
        write_json(folder / RECIPE, {"schema": SCHEMA, **self.recipe})
        write_text(folder / CARD, render_card(self.facts, self.deltas, path.name == LORA))
        return path

    @classmethod
    @own_settings()
    def from_pretrained(cls, folder: str | Path) -> "Erasure":
        """Read an erasure folder; raises ValueError naming the folder if it is not a whole one."""
        folder = put_back(expanded(folder))
        mend = "give a folder that save_pretrained wrote"
        with refused(f"{folder} is not a readable erasure folder", mend, ValueError):
            record = read_json(folder / RECIPE, LARGEST_RECIPE)
            Recipe.read(record)
            if record.pop("schema", None) != SCHEMA:
                raise ValueError(f"it has another schema than {SCHEMA}: update diffusers-erase")
            return cls(read_deltas(folder), record)

    def export_pipeline(self, pipeline: DiffusionPipeline, folder: str | Path) -> None:
        """Write the erased pipeline as a stock folder that plain diffusers opens.

        The concepts the base is known to draw go along. Raises ValueError if the folder holds
        anything, and for a pipeline with an adapter, which no stock folder holds.
        """
        source, pipeline = pipeline.name_or_path, plain_pipeline(pipeline)
        require_nothing_added(pipeline.components)
        with replaced_folder(Path(folder)) as partial, self.apply(pipeline.components):
            pipeline.save_pretrained(partial)
            if source and (Path(source) / CATALOGUE).is_file():
                shutil.copy(Path(source) / CATALOGUE, partial)

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Publish the folder as a model repository of the Hugging Face hub; its address."""
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "erasure"
            self.save_pretrained(folder)
            hub = HfApi()
            address = hub.create_repo(repository, private=private, exist_ok=True)
            hub.upload_folder(
                repo_id=address.repo_id, folder_path=folder, delete_patterns=list(FILES)
            )
        return str(address)


def _on_all_ways(
    components: Mapping[str, nn.Module], names: Iterable[str]
) -> dict[nn.Module, None]:
    """Every module on the way to tensors of these names, once."""
    return {module: None for name in names for module in way_to(components, name)}


class AppliedErasure(AbstractContextManager["AppliedErasure"]):
    """An erasure in force; `revert` puts the very same bits back, as does leaving its context.

    `weights` are the tensors it changes, by name, `originals` the base's own values of them;
    `modules` hold them, by component.
    """

    def __init__(
        self,
        deltas: Mapping[str, Delta],
        components: Mapping[str, nn.Module],
        weights: Mapping[str, Tensor],
        scale: float,
    ):
        changed = {name.partition(".")[0] for name in deltas}
        self.modules = {name: unwrapped(components[name]) for name in changed}
        self._deltas, self._scale = dict(deltas), scale
        self.originals = {name: weight.detach().clone() for name, weight in weights.items()}
        try:
            self._add(weights)
        except BaseException:
            self._put_back(weights)
            raise

    @torch.no_grad()
    def _add(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            weight.copy_(changed := self._changed(name))
            if not changed.isfinite().all() and self.originals[name].isfinite().all():
                raise ValueError(f"{name} would not be finite under this erasure; lower its scale, "
                                 "or make it again.")  # fmt: skip

    def _changed(self, name: str) -> Tensor:
        original = self.originals[name]
        changed = original + self._scale * self._deltas[name].dense().to(original.device)
        return changed.to(original.dtype)

    @torch.no_grad()
    def _put_back(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            weight.copy_(self.originals[name])

    def require_revertible(self) -> None:
        """ValueError where the change went on into others' weights, as into fused attention."""
        require_in_force(_on_all_ways(self.modules, self._there()), {})

    @own_settings()
    @torch.no_grad()
    def revert(self) -> None:
        """Restore every weight bit for bit.

        Tensors are found anew, since others may stand in their places by now; a table of words may
        have grown. Raises ValueError before anything is touched where what was changed is fused
        into others, and when all others are back if a tensor is gone or of another shape. What
        others changed of the tensors meanwhile is lost, with a warning.
        """
        self.require_revertible()
        there = self._there()
        if touched := [name for name, weight in there.items() if self._is_others(name, weight)]:
            logger.warning(
                "%s and %d other tensors were changed by others while an erasure was in force, as "
                "by a LoRA that was fused; they are again what they were before it.",
                touched[0],
                len(touched) - 1,
            )
        self._put_back(there)
        if gone := sorted(self.originals.keys() - there.keys()):
            raise ValueError(
                f"The base's values are back, but {', '.join(gone[:3])}{' ...' * (len(gone) > 3)} "
                "cannot be: gone, or of another shape or kind since; open the base again."
            )

    def _is_others(self, name: str, weight: Tensor) -> bool:
        """Whether others than this erasure changed the numbers, which a cast does not."""
        original, now = self.originals[name], weight.detach()
        if now.dtype != original.dtype or torch.equal(now, original.to(now.device)):
            return False
        return not torch.equal(now, self._changed(name).to(now.device))

    def _there(self) -> dict[str, Tensor]:
        """The tensors that can be put back, as they are now."""
        there = {}
        for name, original in self.originals.items():
            with suppress(ValueError):
                weight = find_rows(self.modules, name, original.shape)
                if weight.shape == original.shape and holds_numbers(weight):
                    there[name] = weight
        return there

    def __exit__(self, *_: object) -> None:
        self.revert()
