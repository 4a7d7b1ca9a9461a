"""How well images fit their captions (Hessel et al. 2021, arXiv 2104.08718)."""

from __future__ import annotations

from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from secateur.metrics.distribution.samples import check_pair, checked


def clip_score(images: Float[Tensor, "N D"], captions: Float[Tensor, "N D"]) -> Float64[Tensor, " N"]:
    """100 max(cos(image, caption), 0) of each pair of embeddings, as torchmetrics and most papers scale it.

    Equation 1 of the paper has 2.5 instead of 100. Say which CLIP model made the embeddings: scores of two cannot be
    compared.

    Raises:
        ValueError: there are not as many images as captions, or what `checked` and `check_pair` raise.
    """
    images, captions = checked(images, "image embeddings"), checked(captions, "caption embeddings")
    check_pair(images, captions)
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions: each image needs its own")
    return 100 * cosine_similarity(images, captions, dim=1).clamp(min=0)
