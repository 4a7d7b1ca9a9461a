"""A dense task's network: a ViT and one linear layer from each patch to the classes of its pixels."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel, ViTPreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput


class ViTForPatchSegmentation(ViTPreTrainedModel):
    """The linear decoder of Segmenter (Strudel et al. 2021, arXiv 2105.05633, section 3.2) on transformers' ViT.

    Class scores of each patch's token, as a grid, are scaled up bilinearly to the image. It saves and loads as
    transformers' models do. The final norm sees all tokens, so what prunes tokens must give all of them back.

    Args:
        config: of transformers; `num_labels` classes.

    Attributes:
        patchwise: linear layers that run on each patch: what counts multiply-adds cannot see that of a layer.
    """

    patchwise = ("classifier",)

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or ()))
        self.post_init()

    def forward(
        self, pixel_values: Float[Tensor, "N C H W"], labels: Tensor | None = None, **options: Any
    ) -> SemanticSegmenterOutput:
        """Scores of each class at each pixel.

        Args:
            pixel_values: (N, C, H, W), H and W multiples of the patch size.
            labels: (N, H, W) int64; with them the output has a `loss`, the mean cross-entropy of all pixels.
            options: of `ViTModel.forward`.

        Returns:
            `logits`: (N, classes, H, W).

        Raises:
            ValueError: tokens are missing at the end.
        """
        tokens = self.vit(pixel_values, **options).last_hidden_state
        size, patch = pixel_values.shape[-2:], self.vit.embeddings.patch_embeddings.patch_size
        rows, columns = size[0] // patch[0], size[1] // patch[1]
        if tokens.shape[1] < rows * columns:
            raise ValueError(
                f"a class for each of {rows}x{columns} patches needs as many tokens, the network ends with "
                f"{tokens.shape[1]}: put pruned tokens back before the end"
            )
        scores = self.classifier(tokens[:, -rows * columns :])
        grid = scores.transpose(1, 2).unflatten(2, (rows, columns))
        logits = nn.functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits)
