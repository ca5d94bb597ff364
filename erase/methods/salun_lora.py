"""SalUn-LoRA: the salient layers alone get adapters, of a rank that fits their saliency."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from torch import nn

from erase.core.activations import projectable_layers
from erase.core.delta import LowRankDelta, require_finite
from erase.core.mask import build_mask
from erase.core.names import lora_holds, require_nothing_added
from erase.core.seeds import folded
from erase.erasure.erasure import Erasure
from erase.methods import Needs, register
from erase.methods.salun import (
    Density,
    RelabellingConfig,
    relabelling_loss,
    relabelling_needs,
    saliency,
    settings_for_teacher,
)
from erase.support.config import Positive
from erase.tasks.base import TrainedTask
from erase.training.loop import train
from erase.training.preserve import only_trainable
from erase.training.watch import checkpointed_activations

ADAPTER = "erase"


@dataclass(frozen=True)
class SalUnLoRAConfig(RelabellingConfig):
    """The ranks of SalUn-LoRA.

    Args:
        rank: rank of the most salient layer; others get their share of it, or none.
        density: share of all weights that count as salient.
    """

    keeps = False
    rank: Positive[int] = 16
    density: Density = 0.1


def _needs(task: TrainedTask, config: SalUnLoRAConfig) -> Needs:
    _layers(task)
    return relabelling_needs(task, config)


@register("salun_lora", SalUnLoRAConfig, needs=_needs)
def salun_lora(task: TrainedTask, config: SalUnLoRAConfig) -> Erasure:
    """SalUn's objective (Fan et al., ICLR 2024) on LoRA weights where the saliency mask is dense.

    A layer's rank is `rank` times its share of salient weights over the largest such share.
    """
    task.with_redirection_pictures().prepare()
    with checkpointed_activations(task, config.training.gradient_checkpointing):
        ranks = _ranks(task, config)
    training = settings_for_teacher(task, config)
    # The outer context gives back the flags that injection sets.
    with torch.random.fork_rng(), only_trainable(task, {}), _adapters(task, ranks) as factors:
        parameters = {
            f"{name}.{side}": factor
            for name, pair in factors.items()
            for side, factor in zip(("down", "up"), pair, strict=True)
        }
        loss = relabelling_loss(task, config.teacher, config.retain_weight, parameters)
        with only_trainable(task, parameters):
            train(task.with_redirection_pictures(), loss, training, parameters=parameters)
        deltas = {
            f"{name}.weight": LowRankDelta(up.detach().cpu().clone(), down.detach().cpu().clone())
            for name, (down, up) in factors.items()
        }
        for name, delta in deltas.items():
            require_finite(name, delta.dense().half())
    return Erasure(deltas, {"ranks": ranks})


def _ranks(task: TrainedTask, config: SalUnLoRAConfig) -> dict[str, int]:
    """The rank of every layer that gets one, by canonical name."""
    mask = build_mask(saliency(task, "signed_sum"), config.density)
    shares = {
        layer: mask.tensors[f"{layer}.weight"].float().mean().item() for layer in _layers(task)
    }
    largest = max(shares.values())
    if not largest:
        raise ValueError("No layer that LoRA can edit is salient; raise density.")
    ranks = {layer: round(config.rank * share / largest) for layer, share in shares.items()}
    return {layer: rank for layer, rank in ranks.items() if rank}


def _layers(task: TrainedTask) -> list[str]:
    """The layers that may change and that LoRA can edit; ValueError if there are none."""
    weights = task.parameters()
    layers = [
        layer
        for component, module in task.components.items()
        for layer in projectable_layers(module, component)
        if f"{layer}.weight" in weights and lora_holds(f"{layer}.weight")
    ]
    if not layers:
        raise ValueError(
            f"No layer of {', '.join(task.components)} that may change can be edited by LoRA; "
            "widen the components or the patterns, or take the method salun."
        )
    return layers


@contextmanager
def _adapters(
    task: TrainedTask, ranks: Mapping[str, int]
) -> Iterator[dict[str, tuple[nn.Parameter, nn.Parameter]]]:
    """Adapters in force on the layers: their (down, up) factors, by the layer's canonical name."""
    torch.manual_seed(folded(task.seed))
    factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
    tuners: list[LoraModel] = []
    # Taking ours out again would take the others too.
    require_nothing_added(task.components)
    try:
        for component, module in task.components.items():
            layers = projectable_layers(module, component)
            paths = {layer: path for path, layer in module.named_modules()}
            chosen = {paths[layer]: name for name, layer in layers.items() if name in ranks}
            if chosen:
                by_path = {path: ranks[name] for path, name in chosen.items()}
                tuners.append(LoraModel(module, _lora_config(by_path), ADAPTER))
                factors |= {name: _factors(module, path) for path, name in chosen.items()}
        yield factors
    finally:
        for tuner in tuners:
            tuner.unload()


def _lora_config(ranks: Mapping[str, int]) -> LoraConfig:
    """Alpha equal to the rank everywhere, so that the change is up @ down itself.

    Whole paths as patterns, since peft takes a bare one for every path that ends with it.
    """
    pattern = {f"^{re.escape(path)}": rank for path, rank in ranks.items()}
    return LoraConfig(
        target_modules="|".join(map(re.escape, ranks)), rank_pattern=pattern, alpha_pattern=pattern
    )


def _factors(module: nn.Module, path: str) -> tuple[nn.Parameter, nn.Parameter]:
    layer: LoraLayer = module.get_submodule(path)
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
