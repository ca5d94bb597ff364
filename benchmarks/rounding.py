"""What rounding a base's weights does to closed forms, by significant bits, on the bundled model.

Run: `python benchmarks/rounding.py [--concepts ghost] [--bits 8 9 10 11 12 14] [--methods ...]`;
prints one row a method: the distance of its change to that made from the unrounded weights, as a
share of that change, over all tensors and at the worst of them. Bfloat16 has 8 significant bits,
float16 has 11. The weights of denoiser and text encoder are rounded, everything computes in
float32; with 8 bits these are, bit for bit, the changes made from bfloat16
(tests/test_half_precision.py). An error that halves with every bit is the base's own rounding,
which no computation can take back. Balance hears no denoiser here.
"""

import argparse
from collections.abc import Mapping

import torch
from canvas_bench import opened
from lists import erased, task_of
from torch import Tensor, nn

CLOSED = ("projection", "uce", "rece", "speed", "oce", "balance")


@torch.no_grad()
def round_to(module: nn.Module, bits: int) -> None:
    """Every weight to the nearest number of so many significant bits."""
    for weight in module.parameters():
        mantissa, exponent = torch.frexp(weight)
        weight.copy_(torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent))


def changes(bits: int | None, method: str, concepts: list[str]) -> Mapping[str, Tensor]:
    """The method's change of each tensor, made from a base of so many bits."""
    model = opened("emoji", "no")
    if bits:
        round_to(model.pipeline.unet, bits)
        round_to(model.pipeline.text_encoder, bits)
    options = {"heard": 0} if method == "balance" else {}
    erasure, _ = erased(task_of(model, concepts, 0), method, **options)
    return {name: delta.dense() for name, delta in erasure.deltas.items()}


def distances(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[float, float]:
    """Relative distance over all tensors, and the largest of one tensor."""
    apart = torch.stack([(before[name] - after[name]).norm() for name in before])
    sizes = torch.stack([before[name].norm() for name in before])
    return float(apart.norm() / sizes.norm()), float((apart / sizes).max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=["ghost"])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 9, 10, 11, 12, 14])
    parser.add_argument("--methods", nargs="+", choices=CLOSED, default=CLOSED)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| whole, worst (%) | {' | '.join(f'{bits} bits' for bits in args.bits)} |")
    print("| --- " * (len(args.bits) + 1) + "|")
    for method in args.methods:
        whole = changes(None, method, args.concepts)
        found = [distances(whole, changes(bits, method, args.concepts)) for bits in args.bits]
        cells = (f"{100 * all_:.2f}, {100 * worst:.2f}" for all_, worst in found)
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
