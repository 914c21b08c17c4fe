"""Looks into a model in training: what grows before a run becomes unstable.

Shapes: B batch, T time, V vocabulary, H heads, K head width.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from archsearch.scale.stability import Log

if TYPE_CHECKING:
    from collections.abc import Iterator

    from archsearch.model import Model

QUERIES = 256
"""Queries whose logits are made at once."""


@dataclass(slots=True)
class Probes:
    """Series of a training, all at the same steps."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    max_logit: list[float] = field(default_factory=list)
    log_z: list[float] = field(default_factory=list)
    rms: dict[str, list[float]] = field(default_factory=dict)
    update_ratio: dict[str, list[float]] = field(default_factory=dict)

    @torch.no_grad()
    def look(
        self,
        step: int,
        loss: float,
        model: Model,
        rows_BT: Tensor,
        optimizers: list[torch.optim.Optimizer],
    ) -> None:
        """Note one moment, as this process sees it.

        Args:
            step: Steps that are behind it.
            loss: Training loss, the mean since the last moment.
            model: What is trained; every process must run it.
            rows_BT: Tokens to run it on.
            optimizers: Its optimizers, after their step.
        """
        training = model.training
        model.eval()
        with AttentionLogits() as attention, _branch_rms(model) as rms:
            logits_BTV = model(rows_BT)
        model.train(training)
        self.steps.append(step)
        self.loss.append(loss)
        if attention.most is not None:
            self.max_logit.append(float(attention.most))
        self.log_z.append(float(logits_BTV.float().logsumexp(-1).mean()))
        for name, value in rms.items():
            self.rms.setdefault(name, []).append(float(value))
        for kind, ratio in _update_ratios(model, optimizers).items():
            self.update_ratio.setdefault(kind, []).append(ratio)

    def log(self) -> Log:
        """What `stability.judge` judges.

        Raises:
            RunError: if nothing was noted.
        """
        return Log(
            steps=tuple(self.steps),
            loss=tuple(self.loss),
            max_logit=tuple(self.max_logit),
            log_z=tuple(self.log_z),
            rms={name: tuple(series) for name, series in self.rms.items()},
            update_ratio={name: tuple(series) for name, series in self.update_ratio.items()},
        )


class AttentionLogits(TorchFunctionMode):
    """Notes the largest logit of all softmax attention that runs meanwhile, masked or not."""

    most: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self._note(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _note(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, **given: Any) -> None:
        scale = given.get("scale") or q_BHTK.shape[-1] ** -0.5
        if given.get("enable_gqa"):
            k_BHSK = k_BHSK.repeat_interleave(q_BHTK.shape[-3] // k_BHSK.shape[-3], -3)
        for first in range(0, q_BHTK.shape[-2], QUERIES):
            queries = q_BHTK[..., first : first + QUERIES, :]
            most = (queries.float() @ k_BHSK.float().mT).max() * scale
            self.most = most if self.most is None else torch.maximum(self.most, most)


@contextmanager
def _branch_rms(model: Model) -> Iterator[dict[str, Tensor]]:
    """RMS of the output of each branch of the stack that runs meanwhile, the last of its uses."""
    noted: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: object, inputs: object, output: Tensor) -> None:
            noted[name] = output.float().square().mean().sqrt()

        return hook

    handles = [
        branch.register_forward_hook(note(name)) for name, branch in model.stack.branches.items()
    ]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def _update_ratios(model: Model, optimizers: list[torch.optim.Optimizer]) -> dict[str, float]:
    """RMS of the last update over RMS of the weights, by kind of parameter, weight decay left out.

    Parameters that start at 0 have no ratio at first.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = optimizer.state.get(parameter)
                if not state:
                    continue
                count = float(state["step"])
                first, second = (_here(state[key]) for key in ("exp_avg", "exp_avg_sq"))
                root = (second / (1 - beta2**count)).sqrt() + group["eps"]
                update = group["lr"] * first / (1 - beta1**count) / root
                total = sums[model.role_of(names[parameter]).kind]
                total[0] += float(update.square().sum())
                total[1] += float(_here(parameter).square().sum())
    return {kind: (up / weight) ** 0.5 for kind, (up, weight) in sums.items() if weight}


def _here(tensor: Any) -> Tensor:
    """The part of a tensor that this process holds."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
