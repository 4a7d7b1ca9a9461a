import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.splats.scene import GAUSSIANS
from compress3d.splats.viewer import scoring
from compress3d.splats.viewer.scoring import CHOICES, Choice, Scorer
from tests.compress3d.splats.viewer.balls import scene, views


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.label)
def test_every_choice_of_the_menu_scores(choice: Choice) -> None:
    scores = Scorer(scene(200), views).scores(choice)
    assert scores.shape == (200,) and not scores.isnan().any()
    calibration = None if choice.looks == "nothing" else views()
    assert torch.allclose(scores, choice.criterion.score(scene(200), calibration)[GAUSSIANS], equal_nan=True)


def test_rays_are_walked_once_and_scores_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    walks, told = [], []
    real = scoring.ray_contributions

    def counted(*arguments: object) -> object:
        walks.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(scoring, "ray_contributions", counted)
    asked: list[int] = []

    def cameras() -> Cameras:
        asked.append(1)
        return views()

    scorer = Scorer(scene(200), cameras)
    first, second = (choice for choice in CHOICES[:2])
    scores = scorer.scores(first, lambda done, doing: told.append((done, doing)))
    scorer.scores(second)
    assert scorer.scores(first) is scores
    assert len(walks) == 1 and told[-1][0] == 1.0 and "views" in told[-1][1]
    scorer.scores(next(choice for choice in CHOICES if choice.looks == "nothing"))
    assert len(asked) == 2
