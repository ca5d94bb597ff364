"""SalUn on the bundled model by one process, by two, by two with shards, and by two killed ones.

Run: `python benchmarks/two_processes.py --out DIR`. Every run is of the same request, in float64,
with 16 forget and 16 retain pictures; the launched ones talk over gloo. Two processes get kill -9
once a checkpoint lies there, and the same command goes on. Shards are those of
configs/accelerate/fsdp.yaml. Prints whether the masks are the same,
how far the weights are apart, and whether the files are.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from erase.core.delta import Delta, SparseDelta
from erase.erasure.erasure import Erasure
from erase.erasure.weights import DELTAS
from erase.methods import get_method
from erase.methods.salun import SalUnConfig
from erase.models.opening import load_model
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.checkpoint import checkpoints, checkpoints_in
from erase.training.config import TrainingConfig

CONCEPT, PICTURES, GENERATION_STEPS, CHECKPOINT_EVERY = "ghost", 16, 10, 4
PORT = "29541"
LAUNCHES = {  # what accelerate is told
    "one": None,
    "two": ["--multi_gpu", "--num_processes", "2"],
    "shards": ["--config_file", str(Path(__file__).parents[1] / "configs/accelerate/fsdp.yaml")],
}


def worker(folder: Path, steps: int) -> None:
    """One process' part of a run, which writes its erasure as soon as it is whole."""
    from accelerate import Accelerator

    model = load_model("emoji")
    model.pipeline.to(dtype=torch.float64)
    prompts = expand(EraseRequest([CONCEPT]), model.catalogue)
    config = DiffusionTaskConfig(
        forget_pictures=PICTURES, retain_pictures=PICTURES, generation_steps=GENERATION_STEPS
    )
    finetuning = model.finetuning(prompts)
    task = DiffusionTask(model.pipeline, prompts, model.sampling, config, 0, finetuning=finetuning)
    training = TrainingConfig(steps, checkpointing_steps=CHECKPOINT_EVERY)
    with checkpoints_in(folder / "checkpoints"):
        erasure = get_method("salun")(task, SalUnConfig(training=training))
    if Accelerator().is_main_process:
        erasure.save_pretrained(folder / "erasure")


def started(folder: Path, launch: str, steps: int) -> subprocess.Popen:
    """A run in a process group of its own."""
    python = [sys.executable]
    if options := LAUNCHES[launch]:
        python += ["-m", "accelerate.commands.launch", *options, "--main_process_port", PORT]
    command = [*python, __file__, "--out", str(folder), "--steps", str(steps), "--worker"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "yes", "GLOO_SOCKET_IFNAME": "lo",
                                "OMP_NUM_THREADS": "1"}  # fmt: skip
    return subprocess.Popen(command, env=environment, start_new_session=True)


def finished(folder: Path, launch: str, steps: int) -> Erasure:
    """A run's erasure, once it is whole."""
    if started(folder, launch, steps).wait():
        raise SystemExit(f"The run in {folder} failed.")
    return Erasure.from_pretrained(folder / "erasure")


def killed(folder: Path, steps: int) -> int:
    """Start two processes and kill them after a checkpoint; the step it is of."""
    run = started(folder, "two", steps)
    while not (found := checkpoints(folder / "checkpoints")):
        time.sleep(0.2)
        if run.poll() is not None:
            raise SystemExit(f"The run in {folder} ended by itself.")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return int(found[-1].name.split("-")[1])


def changeable(delta: Delta) -> torch.Tensor:
    """Where a delta's mask lets the weight change; a wholly masked-in tensor's is stored dense."""
    full = torch.ones(delta.shape, dtype=torch.bool)
    return delta.mask if isinstance(delta, SparseDelta) else full


def compared(one: Erasure, other: Erasure) -> str:
    """Whether two erasures' masks are equal, and their largest difference."""
    if one.deltas.keys() != other.deltas.keys():
        raise SystemExit("The runs changed different tensors.")
    parts = [(one.deltas[name], other.deltas[name]) for name in one.deltas]
    masks = all(torch.equal(*map(changeable, pair)) for pair in parts)
    apart = max(float((a.dense() - b.dense()).abs().max()) for a, b in parts)
    changed = max(float(a.dense().abs().max()) for a, _ in parts)
    return f"masks equal: {masks}; weights apart by {apart:.1e}, of changes up to {changed:.1e}"


def main() -> None:
    """The runs and what they say of each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.out, args.steps)
        return
    if args.out.exists():
        raise SystemExit(f"{args.out} exists, and its checkpoints would be gone on from.")
    one, two, shards = (finished(args.out / launch, launch, args.steps) for launch in LAUNCHES)
    print(f"SalUn, {CONCEPT}, {args.steps} steps, float64. One and two: {compared(one, two)}")
    print(f"One and two with shards: {compared(one, shards)}")
    step = killed(args.out / "killed", args.steps)
    again = finished(args.out / "killed", "two", args.steps)
    files = [args.out / name / "erasure" / DELTAS for name in ("two", "killed")]
    same = files[0].read_bytes() == files[1].read_bytes()
    print(f"Killed at step {step} and resumed: {compared(two, again)}; same file: {same}")


if __name__ == "__main__":
    main()
