"""The loop that trains every bundled model: per-step seeds, schedule, log, grids, checkpoints."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from erase.support.pictures import save_grid
from erase.training.checkpoint import Checkpoints, checkpoints_in
from erase.training.config import TrainingConfig

LOG_EVERY = 50
CHECKPOINT_EVERY = 250
RECIPE = "a bundled model"


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, a plateau, then a linear fall to zero over the last `decay` share, if any."""

    steps: int
    learning_rate: float
    warmup: int = 100
    decay: float = 0.5

    def __call__(self, step: int) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.learning_rate * rise * fall


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random source of one step, so that a resumed run draws what an unbroken one draws."""
    return torch.Generator().manual_seed(1_000_003 * seed + step)


def train(
    run: Path,
    schedule: Schedule,
    modules: Mapping[str, nn.Module],
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], Tensor],
    after_step: Callable[[int], None] = lambda step: None,
    preview: Callable[[], Tensor] | None = None,
    preview_every: int = 500,
    weight_decay: float = 0.01,
) -> None:
    """Minimise `loss(step)` with AdamW, going on from the newest checkpoint in `run`."""
    run.mkdir(parents=True, exist_ok=True)
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(
        parameters, schedule.learning_rate, (0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    weights = {
        f"{name}.{key}": t for name, m in modules.items() for key, t in m.state_dict().items()
    }
    with checkpoints_in(run):
        kept = Checkpoints(TrainingConfig(), RECIPE, weights, optimizer)
    first = kept.first
    started, total = time.perf_counter(), 0.0
    for step in tqdm(range(first, schedule.steps), initial=first, total=schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after_step(step)
        total += value.item()
        if (step + 1) % LOG_EVERY == 0:
            _log(run, step + 1, total / LOG_EVERY, time.perf_counter() - started)
            total = 0.0
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == schedule.steps:
            kept.save(step + 1, writes=True)
        if preview is not None and (step + 1) % preview_every == 0:
            save_grid(preview(), run / f"grid-{step + 1:06d}.png", columns=16)


def _log(run: Path, step: int, loss: float, seconds: float) -> None:
    with (run / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps({"step": step, "loss": round(loss, 5), "s": round(seconds)}) + "\n")
