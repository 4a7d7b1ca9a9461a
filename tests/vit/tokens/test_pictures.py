from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.vit.tokens.models import images, vit
from vit.tokens import Counts, TokenMerging, TokenNorm, draw_kept, kept_by_layer, reduce_tokens


def test_layers_say_which_patches_are_alive():
    model = vit()
    with torch.no_grad(), reduce_tokens(model, TokenNorm(), Counts((16, 10, 10, 3))) as reduction:
        model(images())
        layers = kept_by_layer(reduction)
    assert [(layer >= 0).sum(1).tolist() for layer in layers] == [[16] * 3, [10] * 3, [10] * 3, [3] * 3]
    for earlier, later in pairwise(layers):
        assert bool(((later < 0) | (earlier >= 0)).all()), "what is gone does not return"
    alive = layers[3] >= 0
    assert torch.equal(layers[3][alive], torch.arange(16).expand(3, -1)[alive])


def test_layers_say_which_patches_are_merged():
    model = vit()
    with torch.no_grad(), reduce_tokens(model, TokenMerging(), Counts((16, 10, 6, 6))) as reduction:
        model(images())
        layers = kept_by_layer(reduction)
    assert [[len(image.unique()) for image in layer] for layer in layers] == [[16] * 3, [10] * 3, [6] * 3, [6] * 3]
    for image in range(3):
        for holder in layers[3][image].unique():
            assert layers[3][image, holder] == holder, "a token is named by one of its own patches"


def test_with_fusion_the_last_layer_sees_all():
    model = vit()
    with torch.no_grad(), reduce_tokens(model, TokenNorm(), Counts((16, 8, 8, 8)), last_layer_fusion=True) as reduction:
        model(images())
        layers = kept_by_layer(reduction)
    assert bool((layers[3] == torch.arange(16)).all()) and int((layers[2] < 0).sum()) == 24


def test_a_strip_shows_what_changes():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = (200, 40, 40)
    whole = torch.arange(4)
    dropped = torch.tensor([0, 1, -1, 3])
    merged = torch.tensor([0, 1, -1, 1])
    strip = np.asarray(draw_kept(image, [whole, dropped, dropped, merged], (2, 2)))
    assert strip.shape == (112, 3 * 112 + 2 * 4, 3)
    panels = [strip[:, start : start + 112] for start in (0, 116, 232)]
    assert panels[0][20, 20].tolist() == [200, 40, 40] and panels[0][90, 20].tolist() == [0, 0, 0]
    assert panels[1][90, 20].min() > 190, "what is gone is pale"
    assert panels[2][20, 90].tolist() == panels[2][90, 90].tolist() == [100, 20, 20], "what is merged is one colour"


def test_pictures_need_a_forward_and_a_grid_that_fits():
    with (
        reduce_tokens(vit(), TokenNorm(), Counts((16, 8, 8, 8))) as reduction,
        pytest.raises(ValueError, match="no patch"),
    ):
        kept_by_layer(reduction)
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="not divided by 3x3"):
        draw_kept(image, [], (3, 3))
    with pytest.raises(ValueError, match="has 16 patches, got"):
        draw_kept(image, [torch.arange(9)], (4, 4))
