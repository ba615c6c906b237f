"""Training documents a little changed: tokens left out, swapped, replaced by their like.

Three of the four changes of EDA (Wei & Zou 2019), on padded batches of ids instead of text; its
fourth, inserting a synonym, lengthens documents and is left out. Everything works on whole batches
and on the device that they are on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .recipe import TrainConfig
from .tokenizer import PADDING, UNKNOWN

CELLS = 1 << 25
"""Cosines held at a time by `neighbours`."""


def augment(
    ids: Tensor,
    lengths: Tensor,
    config: TrainConfig,
    neighbours: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Synonyms, then swaps, then deletions, each by its share in the config.

    Args: ids int64 (batch, time), padded on the right; lengths int64 (batch,); a table made by
    `neighbours`, on the same device, or None if `synonym` is 0; a generator on any device.
    Returns: new ids of the same shape and their lengths; the very same tensors if nothing is asked.
    """
    if config.synonym and neighbours is not None:
        ids = replace(ids, lengths, config.synonym, neighbours, generator)
    if config.swap:
        ids = swap(ids, lengths, config.swap, generator)
    if config.deletion:
        ids, lengths = delete(ids, lengths, config.deletion, generator)
    return ids, lengths


def delete(
    ids: Tensor, lengths: Tensor, share: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Leave each token out with probability `share`, and close the gaps; one token always stays.

    Args: ids int64 (batch, time), lengths int64 (batch,). Returns: both, in the same shapes.
    """
    inside = _inside(ids, lengths)
    luck = _uniform(ids, generator).masked_fill(~inside, -1)
    # The luckiest token is the last to go: it stays where all would be left out.
    luckiest = F.one_hot(luck.argmax(1), ids.shape[1]).bool()
    kept = ((luck >= share) | luckiest) & inside
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    lengths = kept.sum(1)
    return ids.gather(1, order).masked_fill(~_inside(ids, lengths), PADDING), lengths


def swap(
    ids: Tensor, lengths: Tensor, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """Let neighbouring tokens change places, each token in one pair at most.

    Pairs begin at the first or the second token, by chance for each document, and each changes
    with probability `share`: so does a share of (length - 1) / length of that of all tokens.

    Args: ids int64 (batch, time), lengths int64 (batch,). Returns: ids of the same shape.
    """
    steps = torch.arange(ids.shape[1], device=ids.device)[None, :]
    begin = (_uniform(ids[:, :1], generator) < 0.5).long()
    left = steps - (steps - begin) % 2
    whole = (left >= 0) & (left + 1 < lengths[:, None])
    # Both of a pair read the luck of the left one.
    luck = _uniform(ids, generator).gather(1, left.clamp(min=0))
    order = torch.where(whole & (luck < share), 2 * left + 1 - steps, steps)
    return ids.gather(1, order)


def replace(
    ids: Tensor,
    lengths: Tensor,
    share: float,
    neighbours: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Replace each token, with probability `share`, by one of its neighbours, all equally likely.

    Args: ids int64 (batch, time), lengths int64 (batch,), int64 (vocabulary, k) made by
    `neighbours`. Returns: ids of the same shape.
    """
    k = neighbours.shape[1]
    choice = (_uniform(ids, generator) * k).long().clamp(max=k - 1)
    chosen = (_uniform(ids, generator) < share) & (ids > UNKNOWN) & _inside(ids, lengths)
    return torch.where(chosen, neighbours[ids, choice], ids)


def neighbours(matrix: Tensor, k: int = 8, covered: Tensor | None = None) -> Tensor:
    """The tokens nearest to each by cosine, itself aside, the nearest first.

    Args: float32 (vocabulary, width); bool (vocabulary,), the tokens whose vectors mean something
    (all, by default), the others being noise.
    Returns: int64 (vocabulary, k), or fewer columns where fewer tokens mean something; padding, the
    unknown token, zero vectors and noise are nobody's neighbours and have only themselves.
    """
    size = len(matrix)
    vectors = F.normalize(matrix.float(), dim=1)
    able = vectors.any(1) if covered is None else vectors.any(1) & covered.to(matrix.device)
    able[: UNKNOWN + 1] = False
    own = torch.arange(size, device=matrix.device)
    places = own[able]
    known = vectors[able]
    k = min(k, len(places) - 1)
    if k < 1:
        return own[:, None]
    table = own[:, None].repeat(1, k)
    chunk = max(1, CELLS // len(places))
    for start in range(0, len(places), chunk):
        rows = places[start : start + chunk]
        cosines = known[start : start + chunk] @ known.T
        cosines[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = -2
        table[rows] = places[cosines.topk(k).indices]
    return table


def _inside(ids: Tensor, lengths: Tensor) -> Tensor:
    """True where a token belongs to its document, (batch, time)."""
    return torch.arange(ids.shape[1], device=ids.device)[None, :] < lengths[:, None]


def _uniform(ids: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers in [0, 1) in the shape of ids, on their device."""
    device = generator.device if generator is not None else ids.device
    return torch.rand(ids.shape, generator=generator, device=device).to(ids.device)
