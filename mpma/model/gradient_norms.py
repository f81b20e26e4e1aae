"""How hard each loss term pulls on what all of them share: measured beside a step, never part of it.

Decisions: the shared part is the two encoders; the gradient is the global batch's, so the figure is the
same for any number of workers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpma.model.gather import rank_and_world, sum_over_workers
from mpma.model.outputs import Losses
from mpma.model.pretraining import PretrainingModel
from mpma.model.widening import widened


def trunk_gradient_norms(model: PretrainingModel, losses: Losses) -> dict[str, Tensor]:
    """Norm of each weighted term's gradient on the encoders, by name; fp32 scalars.

    Call before `losses.total.backward()`, on every worker. Costs one backward pass per term.
    """
    parameters = trunk_parameters(model)
    _, world = rank_and_world()
    norms = {}
    for name, term in losses.terms().items():
        gradients = torch.autograd.grad(
            model.weights[name] * term,
            parameters,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        flat = torch.cat([widened(gradient).flatten() for gradient in gradients])
        norms[name] = (sum_over_workers(flat) / world).norm()
    return norms


def trunk_parameters(model: PretrainingModel) -> list[nn.Parameter]:
    """Trained parameters of the two encoders, which every loss shares."""
    encoder = list(model.image_encoder.parameters())
    text = list(model.report_encoder.bert.parameters())
    return [parameter for parameter in encoder + text if parameter.requires_grad]
