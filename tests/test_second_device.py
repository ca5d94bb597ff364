"""Every method on a device that refuses to meet the CPU: it finds the same there as here."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from conftest import build_tiny_task, digits, trained_digits_model
from test_half_precision import CLOSED, small
from tiny_families import SIDE, build_family
from torch import nn
from torch.utils.data import TensorDataset

from erase import ClassificationTask
from erase.methods import methods, serving
from erase.tasks.diffusion.task import DiffusionTask

PATHS = os.pathsep.join(path for path in sys.path if path)
HALF = torch.bfloat16
EVERYWHERE = ("projection", "uce", "salun")


def chosen(host: str) -> list[str]:
    """All methods on one model of each kind, a trained one and closed forms on the others."""
    if host == "digits":
        return serving(ClassificationTask)
    return serving(DiffusionTask) if host == "sd1" else list(EVERYWHERE)


def deltas(host: str, method: str, dtype: torch.dtype, there: bool) -> dict[str, torch.Tensor]:
    from second_device import SecondDevice, move

    if host == "digits":
        model = copy.deepcopy(trained_digits_model()).to(dtype)
        data = TensorDataset(*(part[:256] for part in digits().tensors))
        threes = (data.tensors[1] == 3).nonzero().flatten().tolist()
        task = ClassificationTask(move(model) if there else model, data, threes, 10)
    else:
        pipeline = build_family(host).to(dtype)
        for module in pipeline.components.values():
            if there and isinstance(module, nn.Module):
                move(module)
    if there:
        with SecondDevice():
            task = task if host == "digits" else build_tiny_task(pipeline, (), SIDE)
            erasure = methods()[method](task, small(method))
    else:
        task = task if host == "digits" else build_tiny_task(pipeline, (), SIDE)
        erasure = methods()[method](task, small(method))
    return {name: delta.dense() for name, delta in erasure.deltas.items()}


def report(*hosts: str) -> None:
    """One line for every method that finds something else there, or cannot work there."""
    for host, number, method in ((h, *pair) for h in hosts for pair in enumerate(chosen(h))):
        dtype = HALF if number % 2 and host != "digits" else torch.float32
        try:
            found, wanted = (deltas(host, method, dtype, there) for there in (True, False))
            apart = sum((found[n] - wanted[n]).square().sum() for n in wanted | found)
            whole = sum(value.square().sum() for value in wanted.values())
            # Training in half precision goes its own way from the first rounding on.
            bound = 2.0 if dtype == HALF and method not in CLOSED else 1e-2
            if not apart.sqrt() <= bound * whole.sqrt():
                print(host, method, dtype, "finds something else there")
        except Exception as error:
            print(host, method, dtype, type(error).__name__, str(error)[:300])


@pytest.mark.parametrize("hosts", [("sd1",), ("sdxl", "sd3", "flux", "pixart"), ("digits",)])
def test_every_method_works_where_the_model_is(hosts):
    # Autograd has to know a device before its first step: a process of its own. Its thread there
    # need not be done when Python is.
    script = (
        f"import os, second_device, test_second_device as t; t.report(*{hosts!r}); "
        "os.sys.stdout.flush(); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=True, text=True,
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": PATHS},
    )  # fmt: skip
    assert not done.stdout
