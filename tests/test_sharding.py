"""Two processes that hold the weights in shards (FSDP2 over gloo) do what one process does."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from conftest import trained_digits_model
from safetensors.torch import load_file, save_file
from test_contract import brisk, build_host, erase_tiny, task_around

from erase.core.shards import in_shards
from erase.erasure import Erasure
from erase.methods import methods
from erase.progress import listening
from erase.sharding import sharded
from erase.training import TrainingStopped

FSDP = Path(__file__).parent.parent / "configs" / "accelerate" / "fsdp.yaml"
TABLE = [
    ("salun", "both"), ("salun", "text_encoder"), ("salun", "sdxl"), ("salun", "sd3"),
    ("salun", "flux"), ("salun", "pixart"), ("salun", "digits"), ("salun_soft", "both"),
    ("esd", "both"), ("concept_ablation", "sd3"), ("scrub", "digits"),
]  # fmt: skip


def resumable(folder: Path):
    """SalUn with four steps, an average, and checkpoints."""
    config = brisk(methods()["salun"].config())
    training = dataclasses.replace(
        config.training, checkpoints=str(folder), checkpointing_steps=1, use_ema=True
    )
    return dataclasses.replace(config, training=training)


def salun_both(folder: Path) -> Erasure:
    return methods()["salun"](task_around(build_host("both"), "both"), resumable(folder))


def weights_lie_in_shards():
    task = task_around(build_host("both"), "both")
    own = task.components
    with sharded(task, task.parameters()) as shards:
        assert shards.keys() == task.parameters().keys()
        assert all(in_shards(p) for part in task.components.values() for p in part.parameters())
        parts = sum(p.to_local().numel() for p in shards.values())
        assert parts < 0.6 * sum(p.numel() for p in shards.values())
    assert task.components == own


def stopped_and_gone_on(folder: Path) -> Erasure:
    def stop(what: str, done: int, total: int) -> None:
        if what == "erasing" and done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with listening(stop):
            salun_both(folder / "state")
    except TrainingStopped:
        return salun_both(folder / "state")
    raise AssertionError("The training was not stopped.")


def work(folder: Path):
    """What each of the two processes does."""
    from accelerate import Accelerator

    # Other numbers of threads train another model, so the digits' is handed over.
    trained_digits_model().load_state_dict(load_file(folder / "digits.safetensors"))
    weights_lie_in_shards()
    made = {f"{m}-{t}": erase_tiny(m, t, torch.float64)[0] for m, t in TABLE}
    made |= {"undisturbed": salun_both(folder / "other"), "resumed": stopped_and_gone_on(folder)}
    os.environ["FSDP_OFFLOAD_PARAMS"] = "true"  # what the launcher makes of fsdp_offload.yaml
    made["offloaded"] = salun_both(folder / "more")
    if Accelerator().is_main_process:
        for name, erasure in made.items():
            erasure.save_pretrained(folder / name)


def apart(one: Erasure, other: Erasure) -> float:
    assert one.deltas.keys() == other.deltas.keys()
    return max((d.dense() - other.deltas[n].dense()).abs().max() for n, d in one.deltas.items())


def test_two_processes_with_shards_agree_with_one(tmp_path):
    save_file(trained_digits_model().state_dict(), tmp_path / "digits.safetensors")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FSDP)]
    launch += ["--main_process_port", "29534", __file__, str(tmp_path)]
    environment = {"ACCELERATE_USE_CPU": "yes", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run(launch, check=True, env=os.environ | environment)
    for method, task in TABLE:
        one = erase_tiny(method, task, torch.float64)[0]
        two = Erasure.from_pretrained(tmp_path / f"{method}-{task}")
        assert apart(one, two) < 1e-6, (method, task)
    undisturbed, *same = (
        Erasure.from_pretrained(tmp_path / name) for name in ("undisturbed", "resumed", "offloaded")
    )
    assert all(apart(undisturbed, one) == 0 for one in same)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
