"""Students of removed blocks are plain diffusers models with the teacher's weights, and learn from its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.architectures import SD_1_5
from diffusion.block_removal import (
    BK_SDM_BASE,
    BK_SDM_SMALL,
    BK_SDM_TINY,
    BlockRemoval,
    remove_blocks,
    remove_by_score,
)
from diffusion.noising import Noising
from diffusion.train import DenoisingTask, DiffusionDistillation
from diffusion.units import prunable
from secateur.allocation import Budget
from secateur.importance import Magnitude
from secateur.recovery.distill import OutputError
from secateur.surgery.cost import count_macs, count_params
from secateur.training import fit
from tests.diffusion.models import inputs, random_model
from tests.diffusion.trajectories import SCHEDULERS

STAGES: dict[str, Any] = {"layers_per_block": 2, "block_out_channels": (16, 32, 32)}
CROSSING, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
DEEP: dict[str, dict[str, Any]] = {
    "unet": {
        "down_block_types": (CROSSING, CROSSING, PLAIN),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "unet2d": {
        "down_block_types": (PLAIN, "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "sdxl": {
        "down_block_types": (PLAIN, CROSSING, CROSSING),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 2, 2),
    },
}
REMOVALS = {
    "base": BK_SDM_BASE,
    "small": BK_SDM_SMALL,
    "tiny": BK_SDM_TINY,
    "middle": BlockRemoval(layers=False, middle=True),
}


def deep(family: str) -> nn.Module:
    """A UNet of three stages of two layers, the inner two of one width."""
    return random_model(family, **STAGES, **DEEP[family])


@pytest.mark.parametrize(
    ("removal", "params"), [(BK_SDM_BASE, 579_384_964), (BK_SDM_SMALL, 482_346_884), (BK_SDM_TINY, 323_384_964)]
)
def test_sizes_of_the_published_students(removal: BlockRemoval, params: int) -> None:
    student = remove_blocks(SD_1_5.build("meta"), removal)
    assert all(parameter.is_meta for parameter in student.model.parameters())
    assert count_params(student.model) == params


@pytest.mark.parametrize("name", list(REMOVALS))
@pytest.mark.parametrize("family", ["unet", "unet2d", "sdxl"])
def test_students_take_weights_by_name_and_run(family: str, name: str) -> None:
    teacher = deep(family)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = remove_blocks(teacher, REMOVALS[name])
    with torch.no_grad():
        output = student.model(**inputs(family), return_dict=False)[0]
    assert output.shape == inputs(family)["sample"].shape and bool(output.isfinite().all())
    state = student.model.state_dict()
    assert torch.equal(state["conv_in.weight"], before["conv_in.weight"])
    last = f"up_blocks.{len(student.model.up_blocks) - 1}.resnets"  # type: ignore[arg-type]
    theirs = f"up_blocks.{len(teacher.up_blocks) - 1}.resnets"  # type: ignore[arg-type]
    assert torch.equal(state[f"{last}.0.conv1.weight"], before[f"{theirs}.0.conv1.weight"])
    kept = 2 if name == "middle" else 1
    assert torch.equal(state[f"{last}.{kept}.conv1.weight"], before[f"{theirs}.2.conv1.weight"])
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_student_loads_with_plain_diffusers(tmp_path: Path) -> None:
    student = remove_blocks(deep("unet"), BK_SDM_TINY).model
    student.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(student).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        pair = [model(**inputs("unet"), return_dict=False)[0] for model in (student, again)]
    assert torch.equal(*pair)


@pytest.mark.parametrize("name", list(REMOVALS))
def test_the_teachers_blocks_go_by_the_students_names(name: str) -> None:
    teacher = deep("unet")
    student = remove_blocks(teacher, REMOVALS[name])
    view = student.teacher(teacher)
    up: Any = teacher.up_blocks
    assert view.get_submodule("up_blocks.0") is up[1 if name == "tiny" else 0]
    with torch.no_grad():
        assert torch.equal(view(**inputs("unet"))[0], teacher(**inputs("unet"))[0])


@pytest.mark.parametrize("name", list(REMOVALS))
def test_a_student_learns_from_the_teachers_blocks(name: str) -> None:
    teacher = deep("unet")
    student = remove_blocks(teacher, REMOVALS[name])
    arguments = inputs("unet")
    batch = {"latents": arguments["sample"], "encoder_hidden_states": arguments["encoder_hidden_states"]}
    module = DiffusionDistillation(
        student.model,
        student.teacher(teacher),
        [OutputError(), student.features()],
        batch,
        DenoisingTask(Noising.of(SCHEDULERS["ddim"][0])),
        rate=1e-4,
    )

    def loss() -> float:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return float(module.losses(batch)["1.Features"].detach())

    before = loss()
    assert before > 0
    fit(module, _Same(batch), steps=20)
    assert loss() < before


def test_what_cannot_go_is_refused() -> None:
    thin = random_model("unet")
    with pytest.raises(ValueError, match="no layer can go from a stage that has one"):
        remove_blocks(thin, BK_SDM_BASE)
    with pytest.raises(ValueError, match="2 of 2 stages cannot go"):
        remove_blocks(thin, BlockRemoval(layers=False, stages=2))
    with pytest.raises(
        ValueError, match=r"'up_blocks.0.resnets.0.norm1.weight' of \(32,\), and the teacher has one of"
    ):
        remove_blocks(thin, BlockRemoval(layers=False, stages=1))
    with pytest.raises(ValueError, match="no block in the middle"):
        remove_blocks(random_model("unet", mid_block_type=None), BlockRemoval(layers=False, middle=True))
    with pytest.raises(ValueError, match="no UNet of diffusers"):
        remove_blocks(random_model("dit"))
    with pytest.raises(ValueError, match="something must go"):
        BlockRemoval(layers=False)


KINDS: Any = ("resnets", "attentions", "feed_forwards", "stacks")


def test_blocks_go_by_score_until_the_whole_model_is_within_the_budget() -> None:
    model = random_model("unet")
    network = prunable(model, KINDS, inputs("unet"))
    scores = Magnitude().score(network)
    whole, sizes = count_macs(model, inputs("unet")), []
    for share in (1.0, 0.8, 0.6):
        small = remove_by_score(network, scores, Budget(share=share, cost="macs"))
        sizes.append(count_macs(small.module, inputs("unet")))
        assert sizes[-1] <= share * whole
        gone, left = set(small.cuts.blocks), set(_names(small))
        inside = {name for name in left if any(name.startswith(f"{block}.") for block in gone)}
        assert not inside
        # The next one to stay is the least of those that could have gone too.
        if gone:
            worth = {name: float(scores[name]) for name in scores}
            assert max(worth[name] for name in gone) <= min(worth[name] for name in left)
    assert sizes[0] == whole > sizes[1] > sizes[2]
    with pytest.raises(ValueError, match="still has more than"):
        remove_by_score(network, scores, Budget(share=0.01, cost="macs"))
    with pytest.raises(ValueError, match="params, bytes or macs"):
        remove_by_score(network, scores, Budget(share=0.5))


def test_whole_transformer_blocks_by_score() -> None:
    network = prunable(random_model("dit", num_layers=4), ("transformer_blocks",), inputs("dit"))
    scores = {group.name: torch.tensor([float(index == 2)]) for index, group in enumerate(network.groups())}
    small = remove_by_score(network, scores, Budget(share=0.6, cost="params"))
    assert "transformer_blocks.2" not in small.cuts.blocks and "transformer_blocks.0" in small.cuts.blocks


def _names(network: Any) -> list[str]:
    return [group.name for group in network.groups()]


class _Same:
    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def batch_at(self, step: int) -> dict[str, Tensor]:
        return self.batch
