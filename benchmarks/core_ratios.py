"""The two cores beside the usual way, in one run: seconds, peak memory above the input, ratios.

Run: `python benchmarks/core_ratios.py`. Every case runs in a process of its own, so that peaks do
not mix. mask: exact-k at density .5 against double argsort. gram: Kodge's update of 36 layers of
width 768, as many as SD1.5's text encoder has, heard in one pass over each set, from streamed
moments against stacking all activations and two SVDs a layer. concepts: a null-space projection
that erases 1, 10 and 100 concepts and keeps 100 others, on the cross-attention of SD1.5 and SDXL.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from erase.core.delta import LowRankDelta
from erase.core.mask import Mask, build_mask
from erase.core.projection import discriminative, null_space
from erase.core.subspace import SubspaceFitter
from erase.erasure.weights import write_deltas, write_mask

SAMPLES, WIDTH, BATCH, SITES, ALPHAS = 10_000, 768, 250, 36, (3.0, 100.0)
LOOK_EVERY = 0.002  # seconds between two looks at the memory
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
# Text width, then output widths of all keys and values: 16 and 70 cross-attentions.
SHAPES = {
    "sd15": (768, [320] * 5 + [640] * 5 + [1280] * 6),
    "sdxl": (2048, [640] * 10 + [1280] * 60),
}


def scores_of(millions: str) -> dict[str, Tensor]:
    """Random saliency: 50 M weights in 50 tensors, or one per weight of SD1.5's UNet."""
    if millions == "50":
        sizes = {str(i): torch.Size([1_000_000]) for i in range(50)}
    else:
        with torch.device("meta"):
            unet = UNet2DConditionModel(**SD15)
        sizes = {name: parameter.shape for name, parameter in unet.named_parameters()}
    torch.manual_seed(0)
    return {name: torch.randn(size).abs_() for name, size in sizes.items()}


def double_argsort(scores: dict[str, Tensor]) -> Mask:
    """The field's way: rank all weights by sorting twice."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    ranks = torch.argsort(torch.argsort(flat, descending=True))
    kept = (ranks < int(0.5 * len(flat))).split([score.numel() for score in scores.values()])
    return Mask({n: k.view_as(s) for (n, s), k in zip(scores.items(), kept, strict=True)})


def mask_case(way: str, millions: str) -> str:
    """Make the mask; for ours, the size of its file too."""
    scores = scores_of(millions)
    make = double_argsort if way == "argsort" else lambda s: build_mask(s, 0.5)
    mask, line = measured(lambda: make(scores))
    if way == "ours":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.safetensors"
            write_mask(mask, path, {"base": "random"})
            line += f" file_mb={path.stat().st_size / 1e6:.1f}"
    return f"{line} kept={mask.kept} of={mask.total}"


def pool(seed: int) -> Tensor:
    """What a layer reads of a set [SAMPLES, WIDTH], with a falling spectrum."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) * 0.99 ** torch.arange(WIDTH)[:, None]
    return torch.randn(SAMPLES, WIDTH, generator=generator) @ mixing


def heard(activations: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Every site with what it reads, batch by batch: fresh tensors, as a running model makes."""
    for batch in activations.split(BATCH):
        for site in range(SITES):
            yield site, batch.clone()


def streamed_updates(pools: list[Tensor]) -> Iterator[Tensor]:
    """P_f - P_f P_r of every site from streamed moments."""
    fitters = [[SubspaceFitter(WIDTH) for _ in range(SITES)] for _ in pools]
    for one_set, activations in zip(fitters, pools, strict=True):
        for site, rows in heard(activations):
            one_set[site].update(rows)
    for _ in range(SITES):
        spaces = [one_set.pop(0).fit() for one_set in fitters]
        projection = discriminative(*spaces, *ALPHAS)
        yield (projection.left @ projection.right).T.float()


def stacked_updates(pools: list[Tensor]) -> Iterator[Tensor]:
    """The same from all activations, stacked, and two SVDs a site."""
    stacks: list[list[list[Tensor]]] = [[[] for _ in range(SITES)] for _ in pools]
    for one_set, activations in zip(stacks, pools, strict=True):
        for site, rows in heard(activations):
            one_set[site].append(rows)
    for _ in range(SITES):
        projections = []
        for one_set, alpha in zip(stacks, ALPHAS, strict=True):
            stacked = torch.cat(one_set.pop(0))
            left, singular, _ = torch.linalg.svd(stacked.T, full_matrices=False)
            share = singular.square() / singular.square().sum()
            scaled = alpha * share / ((alpha - 1) * share + 1)
            projections.append(left * scaled @ left.T)
        yield projections[0] - projections[0] @ projections[1]


def first_of(updates: Iterator[Tensor]) -> Tensor:
    """Make all updates and keep the first."""
    first = next(updates)
    for _ in updates:
        pass
    return first


def gram_case(way: str, out: str) -> str:
    """Make the update and keep it for comparison."""
    pools, make = [pool(1), pool(2)], streamed_updates if way == "ours" else stacked_updates
    update, line = measured(lambda: first_of(make(pools)))
    save_file({"update": update.contiguous()}, out)
    return line


def concepts_case(model: str, count: str) -> str:
    """Erase the embeddings of `count` concepts and keep those of 100 others."""
    width, outputs = SHAPES[model]
    torch.manual_seed(0)
    forget, retain = torch.randn(int(count), width), torch.randn(100, width)
    weights = {
        f"unet.{i}.attn2.{part}.weight": torch.randn(rows, width) * width**-0.5
        for i, rows in enumerate(outputs)
        for part in ("to_k", "to_v")
    }

    def edit() -> dict[str, LowRankDelta]:
        fitted = [SubspaceFitter(width).update(rows).fit() for rows in (forget, retain)]
        removed = null_space(fitted[0], fitted[1].axes[0], rank=int(count))
        pairs = {name: removed.edit(weight) for name, weight in weights.items()}
        reads = removed.left.T.float().contiguous()
        return {n: LowRankDelta(up.float(), down.float(), reads) for n, (up, down) in pairs.items()}

    deltas, line = measured(edit)
    moved = max(float((delta.dense() @ retain.T).abs().max()) for delta in deltas.values())
    left = [
        float(((weights[n] + delta.dense()) @ forget.T).norm() / (weights[n] @ forget.T).norm())
        for n, delta in deltas.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_deltas(deltas, Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return f"{line} file_mb={size / 1e6:.1f} retained_moved={moved:.1e} forget_left={max(left):.3f}"


def measured(make: Callable[[], object]) -> tuple[object, str]:
    """The result, the seconds it took, and how far its own memory peaked above where it stood."""
    before, peak, done = resident("RssAnon"), [0.0], Event()

    def watch() -> None:
        while not done.wait(LOOK_EVERY):
            peak[0] = max(peak[0], resident("RssAnon"))

    watcher = Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    result = make()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return result, f"seconds={seconds:.2f} peak_mb={max(0.0, peak[0] - before):.0f}"


def resident(line: str) -> float:
    """Megabytes that Linux gives for VmRSS (now), RssAnon (but for files) or VmHWM (highest)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(re.search(rf"{line}:\s+(\d+) kB", status)[1]) / 1024


def child(*case: str) -> dict[str, float]:
    """Run one case in a process of its own; its figures."""
    command = [sys.executable, __file__, *case]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    print(*case[:3], line, flush=True)
    return {key: float(value) for key, value in (part.split("=") for part in line.split())}


def main() -> None:
    """All cases, then the ratios."""
    ours, theirs = child("mask", "ours", "50"), child("mask", "argsort", "50")
    print(f"mask at 50 M: {theirs['seconds'] / ours['seconds']:.1f}x as fast")
    child("mask", "ours", "860")
    with tempfile.TemporaryDirectory() as folder:
        files = {way: str(Path(folder) / f"{way}.safetensors") for way in ("ours", "stacked")}
        ours, theirs = (child("gram", way, path) for way, path in files.items())
        one, other = (load_file(path)["update"] for path in files.values())
    print(
        f"gram at {SAMPLES} samples: {theirs['seconds'] / ours['seconds']:.1f}x as fast, "
        f"{ours['peak_mb'] / theirs['peak_mb']:.2f} of the memory, relative difference "
        f"{float((one - other).norm() / other.norm()):.1e}"
    )
    for model in SHAPES:
        for count in ("1", "10", "100"):
            child("concepts", model, count)


CASES = {"mask": mask_case, "gram": gram_case, "concepts": concepts_case}

if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(CASES[sys.argv[1]](*sys.argv[2:]))
    else:
        main()
