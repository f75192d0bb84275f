"""k-means over latents, and the placing of further codes beside codes that stay."""

import torch
from emu3_kernels.nearest_code import nearest_code
from torch import Tensor

from emu3_megatron.vision.clustering import move_to_means

FAR_AWAY = 1e4  # where codes lie that are out of use: no latent is near
_AT_ONCE = 1 << 24  # distances
_TAKEN = 0.002  # share of the guarded latents that may change their code


def fit(start_kc: Tensor, latents_nc: Tensor, rounds: int) -> Tensor:
    """Lloyd's algorithm: the means that latents gather around.

    Args:
        start_kc: where the means begin; one that no latent is nearest to stays.
    """
    means_kc = start_kc.clone()
    for _ in range(rounds):
        move_to_means(means_kc, nearest_code(latents_nc, means_kc), latents_nc)
    return means_kc


def fit_beside(
    old_kc: Tensor,
    count: int,
    latents_nc: Tensor,
    guarded_nc: Tensor,
    rounds: int,
    draw: torch.Generator,
    margin: float,
) -> Tensor:
    """`count` further codes for latents that the old ones serve badly.

    The old codes stay, and of `guarded_nc` all but 0.2% at most keep their code: new codes that
    would take more are put onto latents where they take none. Where there are none, such a code
    stays out of use.

    Args:
        margin: of the guard: a latent counts as taken by a code that is nearer than so many times
            its distance to its own.

    Returns:
        The new codes [count, c].
    """
    distances_n = _squared_to_nearest(latents_nc, old_kc)
    new_kc = latents_nc[_weighted(distances_n, count, draw)]
    book_kc = torch.cat((old_kc, new_kc))
    for _ in range(rounds):
        move_to_means(book_kc, nearest_code(latents_nc, book_kc), latents_nc, len(old_kc))
    new_kc = book_kc[len(old_kc) :]
    if not len(guarded_nc):
        return new_kc
    radius_n = _squared_to_nearest(guarded_nc, old_kc) * margin**2
    taken_k, order = _taken(new_kc, guarded_nc, radius_n).sort()
    moves = order[taken_k.cumsum(0) > _TAKEN * len(guarded_nc)]
    weights_n = distances_n * (_taken(latents_nc, guarded_nc, radius_n) == 0)
    if weights_n.sum() > 0:
        new_kc[moves] = latents_nc[_weighted(weights_n, len(moves), draw)]
    else:
        new_kc[moves] = FAR_AWAY
    return new_kc


def _squared_to_nearest(latents_nc: Tensor, book_kc: Tensor) -> Tensor:
    return (latents_nc - book_kc[nearest_code(latents_nc, book_kc)]).square().sum(1)


def _taken(points_kc: Tensor, guarded_nc: Tensor, radius_n: Tensor) -> Tensor:
    """How many guarded latents have each point within their squared radius: [k]."""
    parts = points_kc.split(max(1, _AT_ONCE // len(guarded_nc)))
    return torch.cat([((torch.cdist(p, guarded_nc) ** 2) <= radius_n).sum(1) for p in parts])


def _weighted(weights_n: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Numbers drawn with probabilities in proportion to weights."""
    sums_n = weights_n.double().cpu().cumsum(0)
    places = torch.rand(count, generator=draw, dtype=torch.float64) * sums_n[-1]
    return torch.searchsorted(sums_n, places).clamp_max(len(sums_n) - 1).to(weights_n.device)
