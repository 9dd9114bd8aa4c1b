"""The training's losses: open_clip's contrastive loss, with what must not count as a negative left out, at nested dimensions.

Shape suffixes: N examples of this process, M of all processes, H hard negatives an example, K keys, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss, gather_features
from torch import Tensor, nn

IGNORED = -100  # cross_entropy's own
_NEVER = -1e4


class MaskedClipLoss(ClipLoss):  # type: ignore[misc]
    """open_clip's ClipLoss, in which two examples that share a key are no negatives of each other.

    Pins of one board, near-duplicates, or equal texts are often in one batch: to push them apart would teach the opposite
    of what is wanted. Hard negatives may be given with each example, and count for that example alone.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)

    def forward(  # type: ignore[override]
        self,
        a_ND: Tensor,
        b_ND: Tensor,
        scale: Tensor,
        keys_a_NK: Tensor,
        keys_b_NK: Tensor,
        valid_N: Tensor,
        negatives_NHD: Tensor | None = None,
        has_negative_NH: Tensor | None = None,
    ) -> Tensor:
        """The mean of both directions' cross-entropies, a to b and b to a. Invalid rows are neither asked nor offered.

        keys: int64; two examples share a key where the same column holds the same number in a's and in b's keys.
        negatives_NHD: further candidates of row n of `a`; has_negative_NH says which of them there are.
        """
        if self.world_size > 1:
            all_a, all_b = gather_features(
                a_ND, b_ND, local_loss=True, gather_with_grad=True, rank=self.rank, world_size=self.world_size
            )
        else:
            all_a, all_b = a_ND, b_ND
        all_valid = self._gather(valid_N)
        own = torch.arange(len(a_ND), device=a_ND.device) + len(a_ND) * self.rank
        labels = torch.where(valid_N, own, IGNORED)
        from_a = self._logits(a_ND, all_b, scale, keys_a_NK, self._gather(keys_b_NK), all_valid, own)
        from_b = self._logits(b_ND, all_a, scale, keys_b_NK, self._gather(keys_a_NK), all_valid, own)
        if negatives_NHD is not None and has_negative_NH is not None:
            further_NH = scale * torch.einsum("nd,nhd->nh", a_ND, negatives_NHD)
            from_a = torch.cat([from_a, further_NH.masked_fill(~has_negative_NH, _NEVER)], dim=1)
        if not bool(valid_N.any()):
            return (from_a.sum() + from_b.sum()) * 0.0  # keeps every process in the same graph
        return (nn.functional.cross_entropy(from_a, labels) + nn.functional.cross_entropy(from_b, labels)) / 2

    def _logits(
        self,
        rows_ND: Tensor,
        all_MD: Tensor,
        scale: Tensor,
        keys_NK: Tensor,
        all_keys_MK: Tensor,
        all_valid_M: Tensor,
        own_N: Tensor,
    ) -> Tensor:
        shared_NM = (keys_NK[:, None, :] == all_keys_MK[None, :, :]).any(dim=2) | ~all_valid_M[None, :]
        shared_NM[torch.arange(len(rows_ND), device=rows_ND.device), own_N] = False
        return (scale * rows_ND @ all_MD.T).masked_fill(shared_NM, _NEVER)

    def _gather(self, rows: Tensor) -> Tensor:
        if self.world_size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world_size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)


def nested(dims: Sequence[int], loss_of: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> Tensor:
    """The mean of a loss over prefixes of the vectors (Matryoshka representation learning, arXiv 2205.13147).

    `loss_of` is given the function that cuts vectors (..., D) to a prefix of length 1.
    """

    def cut(vectors: Tensor, dim: int) -> Tensor:
        return nn.functional.normalize(vectors[..., :dim], dim=-1)

    return torch.stack([loss_of(partial(cut, dim=dim)) for dim in dims]).mean()
