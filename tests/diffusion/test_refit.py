from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion.refit import refit_pointwise
from diffusion.units import prunable
from tests.diffusion.models import inputs, random_model


def call(model: Any, batch: dict[str, Any]) -> Any:
    return model(**batch)


def test_fitted_stand_ins_are_nearer_to_their_convolutions() -> None:
    dense = random_model("unet")
    operators = prunable(dense, ("operators",))
    name = "down_blocks.0.downsamplers.0.conv"
    keep = {group.name: torch.tensor([group.name != name]) for group in operators.groups()}
    pruned = operators.cut(keep)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = dense.get_submodule(name).register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        call(dense, inputs("unet"))
    handle.remove()
    stand_in = pruned.module.get_submodule(name)

    def error() -> float:
        with torch.no_grad():
            return float((stand_in(seen[0][0]) - seen[0][1]).square().mean())

    before, weight = error(), dense.get_submodule(name).weight.detach().clone()  # type: ignore[operator]
    assert refit_pointwise(pruned, dense, [inputs("unet")], call) == 1
    assert error() < 0.5 * before
    assert torch.equal(dense.get_submodule(name).weight, weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no batch reached"):
        refit_pointwise(pruned, dense, [], call)
