"""Muon: steps along the orthogonalised momentum of matrices and convolutions, with AdamW for all other parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# Smaller matrices, such as tables of a few rows, are not worth orthogonalising.
LEAST_SIDE = 16
# Of Newton and Schulz's iteration, as published: five steps bring singular values to about 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Root mean square of AdamW's steps, in learning rates.
ADAMW_RMS = 0.2


def parameter_groups(model: nn.Module, weight_decay: float, rates: dict[str, float] | None = None) -> list[dict]:
    """Groups of trained parameters.

    Weight decay is for matrices and convolutions only; biases, norms and special rows have none. Embeddings are tables
    of vectors, not matrices that something is multiplied by, and are not orthogonalised.

    Args:
        model: The model.
        weight_decay: Decay of matrices.
        rates: Factors of the learning rate by prefix of the parameter's name; 1 for all others.

    Returns:
        Groups with `params`, `weight_decay`, `rate` and `orthogonal`, for :class:`Muon` or, which ignores the last two,
        `torch.optim.AdamW`.
    """
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((factor for prefix, factor in (rates or {}).items() if name.startswith(prefix)), 1.0)
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            sides = parameter.flatten(1).shape if parameter.ndim >= 2 else (1,)
            orthogonal = min(sides) >= LEAST_SIDE and parameter not in tables
            groups.setdefault((rate, decay, orthogonal), []).append(parameter)
    return [
        {"params": group, "weight_decay": decay, "rate": rate, "orthogonal": orthogonal}
        for (rate, decay, orthogonal), group in groups.items()
    ]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) beside AdamW.

    What is scaled as by Liu et al. (2025, arXiv:2502.16982) takes AdamW's learning rate and weight decay. PyTorch's own
    `torch.optim.Muon` leaves convolutions out, and multiplies in bfloat16 also where a processor is slow at it.

    Args:
        groups: Parameters with `orthogonal`, which says whether Muon or AdamW moves them.
        lr: Learning rate.
        momentum: Of Muon, in Nesterov's form.
        betas: Decay of AdamW's two moments.
        dtype: Type in which matrices are orthogonalised: bfloat16 where training uses it.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": 0.0, "eps": 1e-8})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves all parameters that have a gradient; those of one shape at once, which spares a GPU small kernels."""
        for group in self.param_groups:
            if moved := [parameter for parameter in group["params"] if parameter.grad is not None]:
                torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
                move = self._muon if group["orthogonal"] else self._adamw
                torch._foreach_add_(moved, move(moved, group), alpha=-group["lr"])

    def _muon(self, moved: list[nn.Parameter], group: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        momenta = self._averages("momentum", moved)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        alike: dict[torch.Size, list[int]] = {}
        for place, direction in enumerate(ahead):
            alike.setdefault(direction.flatten(1).shape, []).append(place)
        steps = list(ahead)
        for shape, places in alike.items():
            scale = ADAMW_RMS * max(shape) ** 0.5
            matrices = torch.stack([ahead[place].flatten(1) for place in places])
            matrices = scale * orthogonalise(matrices.to(self.dtype)).to(matrices.dtype)
            for place, matrix in zip(places, matrices, strict=True):
                steps[place] = matrix.view(ahead[place].shape)
        return tuple(steps)

    def _adamw(self, moved: list[nn.Parameter], group: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        for parameter in moved:
            self.state[parameter].setdefault("step", torch.zeros(()))
            self.state[parameter]["step"] += 1
        firsts, seconds = (
            [1 - beta ** self.state[parameter]["step"].item() for parameter in moved] for beta in group["betas"]
        )
        means, squares = (self._averages(name, moved) for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, gradients, 1 - group["betas"][0])
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - group["betas"][1])
        deviations = torch._foreach_sqrt(torch._foreach_div(squares, seconds))
        torch._foreach_add_(deviations, group["eps"])
        return torch._foreach_div(torch._foreach_div(means, firsts), deviations)

    def _averages(self, name: str, moved: list[nn.Parameter]) -> list[torch.Tensor]:
        """Running averages of gradients, 0 at first."""
        for parameter in moved:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in moved]


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix whose singular values are about 1: 0.7 to 1.2 (Newton and Schulz's iteration).

    Args:
        matrix: `[..., m, n]`.

    Returns:
        `[..., m, n]`, of the same type.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.mT if tall else matrix
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if tall else wide
