"""Weight saliency: how strongly each weight pulls on the forget loss."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn


def accumulate(
    parameters: Mapping[str, nn.Parameter], losses: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Score every weight by |sum over batches of the signed gradient of its loss|.

    `losses` yields one scalar per batch of the forget set and is consumed lazily, so only one
    batch's graph lives at a time. Gradients that were there before are dropped. A weight no loss
    reaches scores 0. Raises ValueError if `losses` is empty or a loss is not finite.
    Source: SalUn (Fan et al., ICLR 2024), eq. 4.
    """
    for parameter in parameters.values():
        parameter.grad = None
    batches = 0
    for loss in losses:
        if not loss.isfinite():
            raise ValueError(f"The forget loss of batch {batches} is {loss.item()}; lower the "
                             "learning rate of the base or use float32.")  # fmt: skip
        loss.backward()
        batches += 1
    if batches == 0:
        raise ValueError("The forget set is empty, so no weight has a saliency; give it samples.")
    scores = {}
    for name, parameter in parameters.items():
        gradient = parameter.grad
        scores[name] = parameter.new_zeros(parameter.shape) if gradient is None else gradient.abs()
        parameter.grad = None
    return scores
