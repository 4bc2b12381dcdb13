"""AdamW and Muon over named parameters, with a state that is plain tensors by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.lanes import Lanes
from phikit.train import parallel, tensors
from phikit.train.settings import OptimiserSettings

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(g_BMN: Tensor) -> Tensor:
    """Each matrix of a stack, its singular values pushed to about 1 (0.7 to 1.2), in bfloat16.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", whose
    quintic Newton-Schulz iteration this is; stacked, because small products one by one are slow.
    """
    a, b, c = NEWTON_SCHULZ
    tall = g_BMN.shape[1] > g_BMN.shape[2]
    x = g_BMN.mT if tall else g_BMN
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).bfloat16()
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, step, x, beta=a)
    return x.mT if tall else x


class Muon:
    """Momentum whose update is orthogonalised, for the matrices of the hidden layers.

    Updates are scaled by 0.2 √max(rows, columns), so that they are as large as AdamW's and share
    its learning rate and weight decay (Liu et al. 2025, arXiv 2502.16982). Fused projections are
    one matrix to it only where `splits` does not say where their parts end.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        splits: Mapping[str, Sequence[int]],
        momentum: float,
        weight_decay: float,
    ) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        self.parameters = dict(parameters)
        self.buffers = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.groups: dict[tuple[int, int], list[tuple[str, slice]]] = {}
        for name, p in parameters.items():
            start = 0
            for rows in splits.get(name, (p.shape[0],)):
                part = slice(start, start + rows)
                self.groups.setdefault((rows, p.shape[1]), []).append((name, part))
                start += rows

    @torch.no_grad()
    def updates(self, lr: float) -> list[Callable[[], None]]:
        """Updates the momentum; returns the rest of the step, a piece for each shape of matrix."""
        parameters = [parallel.local(p) for p in self.parameters.values()]
        grads = [parallel.local(p.grad) for p in self.parameters.values() if p.grad is not None]
        if len(grads) != len(parameters):
            raise PhikitError("a hidden matrix took no part in the loss, so it has no gradient")
        buffers = [parallel.local(b) for b in self.buffers.values()]
        torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
        mixed = torch._foreach_lerp(grads, buffers, self.momentum)  # Nesterov
        updates = {
            name: parallel.gathered(update, p)
            for (name, p), update in zip(self.parameters.items(), mixed, strict=True)
        }
        torch._foreach_mul_(parameters, 1 - lr * self.weight_decay)
        return [partial(self._update, lr, shape, updates) for shape in self.groups]

    @torch.no_grad()
    def _update(self, lr: float, shape: tuple[int, int], updates: Mapping[str, Tensor]) -> None:
        parts = self.groups[shape]
        stack = orthogonalise(torch.stack([updates[name][part] for name, part in parts]))
        scale = -lr * 0.2 * math.sqrt(max(shape))
        targets, changes = [], []
        for (name, part), change in zip(parts, stack, strict=True):
            p = self.parameters[name]
            held = parallel.rows_of(p)
            first, end = max(part.start, held.start), min(part.stop, held.stop)
            if first < end:
                targets.append(parallel.local(p)[first - held.start : end - held.start])
                changes.append(change[first - part.start : end - part.start].to(p.dtype))
        if targets:
            torch._foreach_add_(targets, changes, alpha=scale)


class Optimiser:
    """The optimiser of a model: which parameter is whose, the step, and the state by name."""

    def __init__(self, model: Decoder, settings: OptimiserSettings) -> None:
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.clip = settings.clip
        self.tensor = tensors.ways(model)
        if self.tensor > 1 and settings.kind == "muon":
            raise PhikitError(
                "muon needs whole matrices, which tensor-parallel processes do not hold",
                "use optimiser.kind=adamw, or parallel.tensor=1",
            )
        self.parameters = list(named.values())
        matrices = {
            n: p for n, p in named.items()
            if settings.kind == "muon" and p.dim() == 2 and ".layers." in n
        }  # fmt: skip
        self.muon = (
            Muon(matrices, tensors.parts(model), settings.muon_momentum, settings.weight_decay)
            if matrices
            else None
        )
        self.adam_named = {n: p for n, p in named.items() if n not in matrices}
        decayed = [p for p in self.adam_named.values() if p.dim() > 1]
        plain = [p for p in self.adam_named.values() if p.dim() <= 1]
        # a step over many tensors at once wants them cut over the same processes
        shared = [p for p in decayed if parallel.cut(p)]
        decayed = [p for p in decayed if not parallel.cut(p)]
        self.adam = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
                {"params": shared, "weight_decay": settings.weight_decay},
            ],
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for p in self.parameters:
            p.grad = None

    def clip_grads(self) -> float:
        """Scales the gradients down to the allowed norm; returns the norm they had."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if parallel.world() == 1:
            norm = float(nn.utils.get_total_norm(grads, foreach=True))
        else:
            norm = parallel.total_norm(grads, self.tensor)
        if not norm <= self.clip:  # a norm that is no number shall show in the gradients too
            torch._foreach_mul_([parallel.local(g) for g in grads], self.clip / (norm + 1e-6))
        return norm

    def step(self, lr: float, muon_lr: float, lanes: Lanes) -> None:
        """Moves the parameters by one step, at these learning rates of AdamW and of Muon."""
        for group in self.adam.param_groups:
            group["lr"] = lr
        lanes.run(self.adam.step)
        if self.muon is not None:
            muon = self.muon
            lanes.map(lambda update: update(), lanes.run(lambda: muon.updates(muon_lr)))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as tensors by name."""
        tensors = {
            f"adam.{key}.{name}": value
            for name, p in self.adam_named.items()
            for key, value in self.adam.state[p].items()
        }
        if self.muon is not None:
            tensors |= {f"muon.{name}": buffer for name, buffer in self.muon.buffers.items()}
        return tensors

    def like(self) -> dict[str, Tensor]:
        """Tensors by their names in the state, for how they are sliced over processes."""
        moments = ("exp_avg", "exp_avg_sq")
        tensors: dict[str, Tensor] = {
            f"adam.{key}.{name}": p for name, p in self.adam_named.items() for key in moments
        }
        if self.muon is not None:
            tensors |= {f"muon.{name}": p for name, p in self.muon.parameters.items()}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Takes over a saved state.

        Raises:
            PhikitError: it belongs to another model or to another kind of optimiser.
        """
        muon = self.muon.buffers if self.muon is not None else {}
        keys = ("step", "exp_avg", "exp_avg_sq")
        known = {f"adam.{k}.{n}" for n in self.adam_named for k in keys} | {
            f"muon.{n}" for n in muon
        }
        # before its first step AdamW has no state at all
        if tensors.keys() - known or (missing := _missing(known, tensors.keys())):
            odd = sorted(tensors.keys() - known)[:3] or sorted(missing)[:3]
            raise PhikitError(
                f"{where}: the optimiser's state does not fit ({', '.join(odd)}, ...)",
                "the checkpoint was written with other settings: remove it to train anew",
            )
        for name, buffer in muon.items():
            buffer.copy_(tensors[f"muon.{name}"])
        for name, p in self.adam_named.items():
            state = {k: tensors[f"adam.{k}.{name}"] for k in keys if f"adam.{k}.{name}" in tensors}
            if state:
                self.adam.state[p] = {k: v.clone() for k, v in state.items()}


def _missing(known: Iterable[str], held: Iterable[str]) -> set[str]:
    missing = set(known) - set(held)
    untouched = all(name.startswith("adam.") for name in missing) and not any(
        name.startswith("adam.") for name in held
    )
    return set() if untouched else missing
