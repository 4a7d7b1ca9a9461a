import io
import re

import numpy as np
import torch
from PIL import Image

from compress3d.splats import compress, sample_views
from compress3d.splats.preview import SIDE, preview
from compress3d.splats.scene import SplatScene
from tests.compress3d.splats.test_evaluate import scene as ball


def test_a_scene_shows_itself_in_a_notebook() -> None:
    scene = ball(120)
    picture = preview(scene, 64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert (picture < 250).any() and (picture[0, 0] == 255).all(), "the ball, on white"
    html = scene._repr_html_()
    assert html.startswith("<figure><img src=") and "120 Gaussians, SH degree 0, 6.72 kB as float32" in html
    assert Image.open(io.BytesIO(scene._repr_png_())).size == (SIDE, SIDE)


def test_scenes_that_learn_or_hold_nothing_show_themselves_too() -> None:
    learning = ball(20).with_tensors(means=ball(20).means.requires_grad_())
    assert (preview(learning, 32) < 250).any()
    empty = SplatScene(*(torch.zeros(0, *shape) for shape in ((3,), (4,), (3,), (), (1, 3), (0, 3))))
    assert (preview(empty, 8) == 255).all()


def test_a_compression_shows_its_table() -> None:
    scene = ball(60)
    _, record = compress(scene, keep=0.5, recover=0, cameras=sample_views(scene, 6, 24, 20))
    shown = record._repr_html_()
    assert shown.count("<table>") == 1
    assert re.search("<td>Gaussians</td><td[^>]*>60</td><td[^>]*>30</td>", shown)
    assert "PSNR against own renders" in shown
