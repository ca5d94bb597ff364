import pytest
import torch
from torch import nn

from erase.core.mask import build_mask
from erase.core.masked_update import masked_update
from erase.core.snapshot import Snapshot, copy_of
from erase.training.preserve import restored_parameters

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5, amsgrad=True),
}


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(8, 6)).pow(2).mean()
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_out_weights_stay_bit_equal(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 3))
    parameters = dict(model.named_parameters())
    optimizer = OPTIMIZERS[name](parameters.values())
    one_step(model, optimizer, 0)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    mask = build_mask({name: torch.rand(p.shape) for name, p in parameters.items()}, 0.5)
    with masked_update(optimizer, parameters, mask, before):
        for seed in range(4):
            one_step(model, optimizer, seed)
    for name, parameter in parameters.items():
        kept = mask.tensors[name]
        assert torch.equal(parameter[~kept], before[name][~kept])
        assert not kept.any() or not torch.equal(parameter[kept], before[name][kept])


def test_the_optimizer_is_free_again_afterwards():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    mask = build_mask({"w": torch.tensor([0.0, 1.0])}, 0.5)
    with masked_update(optimizer, {"w": weight}, mask, {"w": torch.ones(2)}):
        pass
    weight.sum().backward()
    optimizer.step()
    assert weight.tolist() == [0.0, 0.0]


def test_a_teacher_and_what_is_put_back_are_one_copy_of_one_state():
    layer = nn.Linear(3, 2, bias=False)
    teacher, start = Snapshot([layer], [layer.weight]), layer.weight.detach().clone()
    with torch.no_grad(), restored_parameters({"w": layer.weight}) as before:
        with teacher.in_place():
            assert layer.weight.data_ptr() == before["w"].data_ptr()
        layer.weight.add_(1)
        assert copy_of(layer.weight).data_ptr() != before["w"].data_ptr()
        with teacher.in_place():
            assert torch.equal(layer.weight, start)
    assert torch.equal(layer.weight, start)
    with torch.no_grad():
        zero = copy_of(layer.weight.zero_())
        assert copy_of(layer.weight.neg_()) is not zero  # equal, and not the same bits
