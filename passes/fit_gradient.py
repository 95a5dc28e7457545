"""Fit one level by mini-batch gradient descent on its error, whatever operators it contains.

Adam from the rewritten weights, cosine schedule, best state by held-out error. The learning rate needs no tuning per
architecture because the error is relative to the target's own variation and Adam's steps do not depend on its scale.
"""

import time

import torch

from fxfuse.passes.descent import adam, descend, falling
from fxfuse.passes.fitting import LevelTask
from fxfuse.passes.keeping import Best, copied, put

CHECKS = 5
"""How often the held-out error is looked at; without progress at ``PATIENCE`` looks the fit stops."""
PATIENCE = 2


def fit_gradient(task: LevelTask, steps: int, lr: float, max_seconds: float | None, seed: int) -> bool:
    """Train the level's parameters in place; returns whether there were any to train."""
    own = set(task.level.parameters)
    parameters = {name: p for name, p in task.piece.named_parameters() if name in own and p.requires_grad}
    if not parameters or steps == 0:
        return False
    optimizer = adam(list(parameters.values()), lr)
    generator = torch.Generator().manual_seed(seed * 1009 + task.level.index)
    chunks = [chunk for chunk in task.chunks if not chunk.held] or task.chunks
    best = Best((task.error(),), copied(parameters), at=0)
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    order: list[int] = []
    looks = 0
    for step in range(steps):
        order = order or torch.randperm(len(chunks), generator=generator).tolist()
        chunk = chunks[order.pop()]
        loss = task.loss(task.piece(*task.inputs(chunk))[0], chunk)
        descend(optimizer, loss, lr * falling("cosine", step / steps))
        if (step + 1) % max(1, steps // CHECKS) == 0 or step + 1 == steps:
            looks += 1
            best.offer((task.error(),), parameters, looks)
            if looks - best.at == PATIENCE or (deadline is not None and time.monotonic() > deadline):
                break
    optimizer.zero_grad()  # gradients take as much memory as the weights
    put(parameters, best.state)
    return True
