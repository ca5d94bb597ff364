"""One protocol drawn undisturbed, and by two processes that are killed three times on the way.

Run: `python benchmarks/stopped_protocol.py --out DIR`. The bundled model with a small denoiser of
random weights draws pictures of 32 x 32 pixels in one step, and the bundled judge scores them
against labels and captions. Two processes talk over gloo and get kill -9 at a quarter, a half and
three quarters of the most pictures; the same command goes on each time. Prints the highest resident
memory of a process, and whether all files are those of the undisturbed run.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import torch

from erase.bundled import EMOJI, JUDGE
from erase.cli import main as erase
from erase.models.opening import load_model

COUNTS, PORT = (500, 1000, 2000), "29543"
OBJECTS = ("ghost", "pizza", "rocket", "skull")
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
          "--main_process_port", PORT]  # fmt: skip


def build(folder: Path) -> None:
    """The model and the prompts."""
    torch.manual_seed(0)
    pipeline = load_model(str(EMOJI), device="cpu").pipeline
    channels = pipeline.vae.config.latent_channels
    unet = type(pipeline.unet)(
        sample_size=8, in_channels=channels, out_channels=channels,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=pipeline.text_encoder.config.hidden_size, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline.register_modules(unet=unet.eval())
    pipeline.save_pretrained(folder / "model")
    for count in COUNTS:
        rows = [f"a {name},{name}" for name in islice(cycle(OBJECTS), count)]
        (folder / f"{count}.csv").write_text("\n".join(["prompt,class", *rows]) + "\n")


def worker(folder: Path, count: int, output: str) -> None:
    """One process' part; says the most memory that it held."""
    rank = os.environ.get("RANK", "0")
    (folder / f"{output}-{rank}.pid").write_text(str(os.getpid()))
    command = ["protocol", f"--model={folder / 'model'}", f"--output={folder / output}"]
    command += [f"--prompts.path={folder / f'{count}.csv'}", "--prompts.label=class"]
    command += ["--drawing.steps=1", "--clip_score=true", f"--evaluation.judge=local-dir:{JUDGE}"]
    if erase(command):
        raise SystemExit(f"The protocol in {folder / output} failed.")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (folder / f"{output}-{rank}.mb").write_text(f"{most:.0f}")


def started(folder: Path, count: int, output: str, launch: list[str]) -> subprocess.Popen:
    """A run in a process group of its own."""
    command = [sys.executable, *launch, __file__, "--out", str(folder), "--worker", str(count)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "yes", "GLOO_SOCKET_IFNAME": "lo",
                                "OMP_NUM_THREADS": "1"}  # fmt: skip
    return subprocess.Popen([*command, output], env=environment, start_new_session=True)


def killed(folder: Path, count: int, output: str, share: float) -> int:
    """Start two processes, kill them at a share of the pictures; how many lie there then."""
    run, kept = started(folder, count, output, LAUNCH), f".{output}.*/pictures/*.png"
    while len(list(folder.glob(kept))) < share * count:
        time.sleep(0.05)
        if run.poll() is not None:
            raise SystemExit(f"The run in {folder / output} ended by itself.")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    for process in folder.glob(f"{output}-*.pid"):  # they have groups of their own
        os.kill(int(process.read_text()), signal.SIGKILL)
    return len(list(folder.glob(kept)))


def files(output: Path) -> dict[str, bytes]:
    """All files of a folder."""
    paths = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def main() -> None:
    """The runs, their memory and whether they are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.out, int(args.worker[0]), args.worker[1])
        return
    args.out.mkdir(parents=True)
    build(args.out)
    most, began = COUNTS[-1], time.perf_counter()
    for count in COUNTS:
        if started(args.out, count, str(count), []).wait():
            raise SystemExit("An undisturbed run failed.")
    stops = [killed(args.out, most, "shared", share) for share in (0.25, 0.5, 0.75)]
    if started(args.out, most, "shared", LAUNCH).wait():
        raise SystemExit("The run that was killed did not end.")
    for path in sorted(args.out.glob("*.mb")):
        print(f"{path.stem}: {path.read_text()} MB at most")
    same = files(args.out / "shared") == files(args.out / str(most))
    print(f"Two processes, killed at {stops} pictures: all files the same: {same}; "
          f"{time.perf_counter() - began:.0f} s in all")  # fmt: skip


if __name__ == "__main__":
    main()
