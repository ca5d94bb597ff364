"""Two processes that hold the weights in shards (FSDP2 over gloo) do what one process does."""

import copy
import dataclasses
import os
import signal
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from hosts import trained_digits_model
from processes import said_by_two
from safetensors.torch import load_file, save_file
from test_contract import (
    PICTURES,
    SAMPLES,
    brisk,
    build_host,
    changes_kept_in,
    erase_tiny,
    erased_once,
    task_around,
    with_teacher,
)

from erase.core.shards import in_shards
from erase.erasure.erasure import Erasure
from erase.methods import methods
from erase.support.progress import on_progress
from erase.training.checkpoint import checkpoints_in
from erase.training.config import TrainingConfig
from erase.training.loop import TrainingStopped
from erase.training.preserve import sharded
from erase.training.watch import require_runnable

pytestmark = pytest.mark.xdist_group("contract")  # whose erasures it is held to
FSDP = Path(__file__).parent.parent / "configs" / "accelerate" / "fsdp.yaml"
TRAINED = {name for name, method in methods().items() if hasattr(method.config(), "training")}
TABLE = [
    *((method, "both") for method in PICTURES if method in TRAINED),
    *((method, "digits") for method in SAMPLES if method in TRAINED),
    *(("salun", task) for task in ("text_encoder", "sdxl", "sd3", "flux", "pixart")),
]
VARIANTS = {
    "checkpointed": {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    "averaged": {"use_ema": True, "adam_weight_decay": 0.1},
    "robust": {"adversary": "prefix"},
    "robust against a word": {"adversary": "word"},
    "robust against states": {"adversary": "states"},
    "robust against a target": {"adversary": "target"},
    "keeping": {"keep": ("a skull", "a pizza")},
}


def salun(adversary: str = "none", keep: Sequence[str] = (), **training) -> Erasure:
    """SalUn of a tiny pipeline in float64 with these options of task and training."""
    task = task_around(build_host("both", torch.float64), "unet" if keep else "both")
    task.config = dataclasses.replace(
        task.config, adversary=adversary, adversary_steps=int(adversary != "none"), keep=keep
    )
    config = brisk(methods()["salun"].config())
    training = dataclasses.replace(config.training, **training)
    with changes_kept_in(torch.float64):
        return methods()["salun"](task, dataclasses.replace(config, training=training))


def stopped_and_gone_on(folder: Path) -> Erasure:
    def stop(what: str, done: int, total: int) -> None:
        if what == "erasing" and done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    kept = {"checkpointing_steps": 1, **VARIANTS["averaged"]}
    with checkpoints_in(folder):
        with on_progress(stop), pytest.raises(TrainingStopped):
            salun(**kept)
        return salun(**kept)


def check_that_weights_lie_in_shards():
    task, whole = task_around(build_host("both"), "both"), []
    own = task.components

    def remembered(module):
        made = copy.deepcopy(module)
        whole.extend(weakref.ref(parameter) for parameter in made.parameters())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("erase.training.preserve.deepcopy", remembered)
        with sharded(task, task.parameters()) as shards:
            assert whole
            assert not any(parameter() is not None for parameter in whole)
            assert shards.keys() == task.parameters().keys()
            held = sum(p.to_local().numel() for p in shards.values())
            assert held < 0.6 * sum(p.numel() for p in shards.values())
            chosen = {id(p) for p in shards.values()}
            for p in (p for part in task.components.values() for p in part.parameters()):
                assert in_shards(p)
                assert p.requires_grad == (id(p) in chosen)
    assert task.components == own


def check_what_is_refused():
    task = task_around(build_host("both"), "both")
    for option in ({"use_8bit_adam": True}, {"validation_steps": 1}):
        with pytest.raises(ValueError, match="distributed_type MULTI_GPU"):
            require_runnable(TrainingConfig(**option), type(task))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSDP_OFFLOAD_PARAMS", "true")
        with pytest.raises(ValueError, match="fsdp_offload_params: false"):
            require_runnable(TrainingConfig(), type(task))


def work(folder: Path):
    """What each of the two processes does."""
    # Other numbers of threads train another model, so the digits' is handed over.
    trained_digits_model().load_state_dict(load_file(folder / "digits.safetensors"))
    check_that_weights_lie_in_shards()
    check_what_is_refused()
    made = {
        f"{m}-{t}": erase_tiny(m, t, torch.float64, **with_teacher(m, t, folder))[0]
        for m, t in TABLE
    }
    made |= {name: salun(**options) for name, options in VARIANTS.items()}
    made["resumed"] = stopped_and_gone_on(folder / "state")
    if Accelerator().is_main_process:
        for name, erasure in made.items():
            erasure.save_pretrained(folder / name)


def apart(one: Erasure, other: Erasure) -> float:
    assert one.deltas.keys() == other.deltas.keys()
    return max((d.dense() - other.deltas[n].dense()).abs().max() for n, d in one.deltas.items())


def launched_with(config: Path) -> dict[str, str]:
    """What `accelerate launch` tells processes of the settings in this file."""
    options = ["--config_file", str(config), "--main_process_port", "0", "script.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(options))
    told = prepare_multi_gpu_env(args)
    return {name: value for name, value in told.items() if name not in os.environ}


def test_two_processes_with_shards_agree_with_one(tmp_path):
    save_file(trained_digits_model().state_dict(), tmp_path / "digits.safetensors")
    given = {pair: with_teacher(*pair, tmp_path) for pair in TABLE}
    said_by_two(work, tmp_path, environment=launched_with(FSDP))
    folders = [path.parent for path in tmp_path.glob("*/erasure.json")]
    made = {folder.name: Erasure.from_pretrained(folder) for folder in folders}
    for method, task in TABLE:
        one = erased_once(method, task, torch.float64, **given[method, task])[0]
        assert apart(one, made[f"{method}-{task}"]) < 1e-6, (method, task)
    for name, options in VARIANTS.items():
        assert apart(salun(**options), made[name]) < 1e-6, name
    assert apart(made["averaged"], made["resumed"]) == 0
