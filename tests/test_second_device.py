"""All that computes, on a device that refuses to meet the CPU: it finds the same there as here."""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from every_part import AT_HAND, OnClassifier, OtherCommands, Work, on_pipeline
from processes import said_by
from test_half_precision import CLOSED
from test_perceptual import keep_backbone
from torch.nn.attention import SDPBackend, sdpa_kernel

from erase.erasure.erasure import Erasure
from erase.evaluate.classifiers import gaps
from erase.evaluate.classifiers import report as classifier_report

SD, *OTHERS = AT_HAND[1:]
GROUPS = {"one pipeline": [SD], "the rest": [*OTHERS, "classifier", "commands"]}
EVERYWHERE = ("method projection", "method uce", "method salun", "attack prefix")
OF_TIME = {"seconds", "cost"}


def parts_of(host: str, device: str, folder: Path) -> Iterator[tuple[str, str, Work]]:
    """Name, dtype and work: all parts on one pipeline, a few on the other families."""
    if host == "classifier":
        yield from ((what, "float32", work) for what, work in OnClassifier(device).parts())
    elif host == "commands":
        yield from ((what, "float32", work) for what, work in OtherCommands(device, folder).parts())
    else:
        both = {d: on_pipeline(host, d, device, folder / d) for d in ("float32", "bfloat16")}
        named = {dtype: dict(on.parts()) for dtype, on in both.items()}
        chosen = [what for what in named["float32"] if host == SD or what in EVERYWHERE]
        for number, what in enumerate(chosen):
            dtype = "bfloat16" if number % 2 and what.startswith("method") else "float32"
            both_ways = host == SD and what.removeprefix("method ") in CLOSED
            for one in both if both_ways else [dtype]:
                yield what, one, named[one][what]


def values_of(found: object) -> Iterator[object]:
    """What of it has to agree: tensors and numbers as vectors, all else as it is."""
    if isinstance(found, Erasure):
        yield torch.cat([found.deltas[name].dense().flatten() for name in sorted(found.deltas)])
    elif isinstance(found, torch.Tensor):
        yield found.flatten().float()
    elif isinstance(found, float):
        yield torch.tensor([found])
    elif is_dataclass(found):
        yield from values_of({field.name: getattr(found, field.name) for field in fields(found)})
    elif isinstance(found, Mapping):
        for name in sorted(found.keys() - OF_TIME):
            yield from (name, *values_of(found[name]))
    elif isinstance(found, Sequence) and not isinstance(found, str):
        for one in found:
            yield from values_of(one)
    else:
        yield found


def agree(what: str, dtype: str, found: Iterable[object], wanted: Iterable[object]) -> bool:
    """Whether all values are alike, vectors but for a small share of their length."""
    # Training in half precision goes its own way from the first rounding on.
    closed = dtype == "float32" or what.removeprefix("method ") in CLOSED
    bound = 1e-2 if closed else 2.0
    return all(
        bool((ours - theirs).norm() <= bound * theirs.norm() + 1e-6)
        if isinstance(theirs, torch.Tensor)
        else ours == theirs
        for ours, theirs in zip(found, wanted, strict=True)
    )


def report(device: str, group: str) -> None:
    """One line for every part that finds something else there, or cannot work there."""
    there = nullcontext
    if device == "second":
        from second_device import SecondDevice as there  # noqa: N813
    gaps.RELEARN_LIMIT, classifier_report.GRID = 2, 4
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_HOME"] = folder
        keep_backbone(Path(folder))
        for host in GROUPS[group]:
            with there():
                parts = list(parts_of(host, device, Path(folder, host, "there")))
            again = parts_of(host, "cpu", Path(folder, host, "here"))
            for (what, dtype, work), (_, _, wanted) in zip(parts, again, strict=True):
                try:
                    with there():
                        found = list(values_of(work()))
                    if device != "second":
                        continue  # a card rounds in its own way; that all of it works is asked
                    # It has no kernel of its own for attention; the CPU's rounds elsewhere.
                    with sdpa_kernel(SDPBackend.MATH):
                        if not agree(what, dtype, found, values_of(wanted())):
                            print(host, what, dtype, "finds something else there")
                except Exception as error:
                    print(host, what, dtype, type(error).__name__, str(error)[:300])


def work_there(device: str, group: str):
    # Autograd has to know a device before its first step: a process of its own. Its thread there
    # need not be done when Python is.
    if device == "second":
        import second_device  # noqa: F401
    report(device, group)
    sys.stdout.flush()
    os._exit(0)


CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA device here."),
    ],
)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("device", ["second", CUDA])
def test_everything_works_where_the_model_is(device, group):
    assert not said_by(work_there, device, group)
