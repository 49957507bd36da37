"""Losses that keep relations between samples of a source and an adapted generator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_table(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines [N, M] of the flattened features [N, ...] and [M, ...], in float32, also inside autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        rows, columns = (F.normalize(features.flatten(1).float(), dim=1) for features in (rows, columns))
        return rows @ columns.T


def distance_consistency(source: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """CDC's loss (Ojha et al. 2021, arXiv 2104.06820): anchor i's similarities to the other samples, as a softmax without
    temperature, shall be those of the source. Released code: the mean over all N (N - 1) entries of p_s (log p_s - log p_t).

    Args:
        source, target: for each of the N anchors the features [N, ...] of all samples at that anchor's layer.
    """
    batch_size = len(target)
    others = ~torch.eye(batch_size, dtype=torch.bool, device=target[0].device)
    logs = []
    for features in (source, target):
        rows = torch.stack([cosine_table(layer[i : i + 1], layer)[0] for i, layer in enumerate(features)])
        logs.append(F.log_softmax(rows[others].view(batch_size, batch_size - 1), dim=1))
    return (logs[0].exp() * (logs[0] - logs[1])).mean()


def contrastive_loss(anchors: Tensor, positives: Tensor, negatives: Tensor | None = None, temperature: float = 0.07) -> Tensor:
    """DCL's terms (Zhao et al. 2022, arXiv 2203.04121): cross-entropy of each anchor [N, ...] for its positive [N, ...] against
    the other positives (Eq. 6) or, where given, against `negatives` [M, ...] only (Eq. 7)."""
    table = cosine_table(anchors, positives) / temperature
    if negatives is None:
        return F.cross_entropy(table, torch.arange(len(table), device=table.device))
    logits = torch.cat([table.diagonal()[:, None], cosine_table(anchors, negatives) / temperature], 1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
