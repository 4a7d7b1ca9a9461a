"""Experts of APTP: a folder with its router, and pictures from the expert of each prompt in the order asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion import load
from diffusion.aptp.experts import ROUTER, Experts, harden, load_experts, load_router, save_experts, save_router
from diffusion.aptp.layout import layout_of
from diffusion.aptp.router import Router
from diffusion.aptp.serving import Routed
from diffusion.demo import networks
from diffusion.pipeline import TextToImage
from diffusion.units import prunable
from secateur.surgery import Network
from secateur.surgery.model_folder import MANIFEST, WEIGHTS
from tests.contracts import assert_same
from tests.diffusion.models import inputs, random_model

KINDS: Any = ("heads", "neurons", "channels", "resnets", "stacks")
PROMPTS = ("a shoe", "a bag", "a boot", "a hat", "a coat")
WIDTH = 6


def encode(prompts: Sequence[str]) -> Tensor:
    """Shoes and boots along the first axis, the others along the second."""
    rows = [[1.0, 0.0] if prompt.endswith(("shoe", "boot")) else [0.0, 1.0] for prompt in prompts]
    return torch.nn.functional.pad(torch.tensor(rows), (0, WIDTH - 2))


class Prompted(TextToImage):
    """Prompts become numbers that depend on their length."""

    def conditions(self, asked: Sequence[str]) -> dict[str, Tensor]:
        rows = torch.arange(60.0).reshape(5, 12).sin()
        return {"encoder_hidden_states": torch.stack([rows * len(prompt) for prompt in asked])}


def network() -> Network:
    model = random_model("unet", in_channels=1, out_channels=1)
    return prunable(model, KINDS, inputs("unet") | {"sample": torch.zeros(2, 1, 8, 8)})


def trained(target: Network) -> Router:
    """Sends what `encode` tells apart to codes of three quarters and of half of the gates; a third code to nobody."""
    router = Router(layout_of(target, gates=4), WIDTH, 3)
    units, starts = len(router.layout) - len(router.layout.depths), [0]
    for size in router.layout.sizes[:-1]:
        starts.append(starts[-1] + size)
    with torch.no_grad():
        router.codes.fill_(0)
        for code, share in ((0, 0.75), (1, 0.5), (2, 0.25)):
            for start, width in zip(starts, router.layout.widths, strict=False):
                closed = torch.arange(start, start + width.gates).roll(-code)[int(share * width.gates) :]
                router.codes[code, closed] = -20.0
        entries = router.codes[:2].clone()
        entries[:, units:] = 0
        for head, part in zip(router.heads, entries.split(router.layout.sizes, dim=1), strict=True):
            head.weight[:, :2] = part.T  # type: ignore[index, operator]
            head.weight[:, 2:] = 0  # type: ignore[index, operator]
    return router


@pytest.fixture(scope="module")
def experts() -> Experts:
    target = network()
    return harden(trained(target), target, encode(PROMPTS))


def pipeline(experts: Experts) -> TextToImage:
    return Prompted(experts.networks[0].module, networks.scheduler())


def test_only_codes_that_prompts_go_to_become_experts(experts: Experts) -> None:
    sizes = [sum(tensor.numel() for tensor in one.tensors().values()) for one in experts.networks]
    assert len(sizes) == 2 and sizes[1] < sizes[0]
    assert experts.router.route(encode(PROMPTS)).tolist() == [0, 1, 0, 1, 1]
    with pytest.raises(ValueError, match="2 codes, but there are 1"):
        Experts(experts.router, experts.networks[:1])


def test_each_picture_is_that_of_its_expert_in_the_order_of_the_prompts(experts: Experts) -> None:
    routed = Routed(experts, pipeline(experts), encode=encode)
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    images = routed(PROMPTS, seeds=[3, 1, 4, 1, 5], **options)
    for place, (prompt, seed, code) in enumerate(zip(PROMPTS, [3, 1, 4, 1, 5], [0, 1, 0, 1, 1], strict=True)):
        alone = Prompted(experts.networks[code].module, networks.scheduler())
        torch.testing.assert_close(images[place], alone([prompt], seeds=[seed], **options)[0])
    backwards = routed(PROMPTS[::-1], seeds=[5, 1, 4, 1, 3], **options)
    torch.testing.assert_close(backwards.flip(0), images)
    assert [picture.size for picture in routed(PROMPTS[:2], num_inference_steps=1)] == [(8, 8)] * 2


def test_a_prompt_has_the_same_expert_in_any_company(experts: Experts) -> None:
    routed = Routed(experts, pipeline(experts), encode=encode)
    together = routed.route(PROMPTS)
    assert [int(routed.route([prompt])[0]) for prompt in PROMPTS] == together.tolist()
    assert_same(together, routed.route(PROMPTS))


def test_what_is_saved_serves_the_same_pictures(experts: Experts, tmp_path: Path) -> None:
    made = TextToImage(experts.networks[0].module, networks.scheduler())
    save_experts(experts, made, tmp_path, recipe={"share": 0.6})
    again, opened, component = load_experts(tmp_path)
    assert component == "unet" and isinstance(opened, TextToImage)
    assert_same(dict(experts.router.state_dict()), dict(again.router.state_dict()))
    assert again.router.layout == experts.router.layout
    for before, after in zip(experts.networks, again.networks, strict=True):
        assert_same(dict(before.tensors()), dict(after.tensors()))
    routed = Routed.from_pretrained(tmp_path, encode)
    assert routed.route(PROMPTS).tolist() == [0, 1, 0, 1, 1]
    assert_same(dict(load(tmp_path).unet.state_dict()), dict(experts.networks[0].module.state_dict()))


@pytest.fixture
def folder(experts: Experts, tmp_path: Path) -> Path:
    save_experts(experts, TextToImage(experts.networks[0].module, networks.scheduler()), tmp_path)
    return tmp_path


def test_a_router_of_other_experts_is_refused(experts: Experts, folder: Path) -> None:
    (folder / "experts" / "1" / WEIGHTS).rename(folder / "experts" / "1" / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_experts(folder)
    save_router(experts.router, folder / ROUTER, "unet", ["0" * 64, "1" * 64])
    with pytest.raises(ValueError, match=r"not the expert that .*router.safetensors was written with"):
        load_experts(folder)
    (folder / "experts" / "1" / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match=MANIFEST):
        load_experts(folder)
    (folder / ROUTER).unlink()
    with pytest.raises(FileNotFoundError, match=ROUTER):
        load_experts(folder)


def test_damaged_routers_are_refused(experts: Experts, tmp_path: Path) -> None:
    path = tmp_path / ROUTER
    for component, hashes, message in (("unet", [], "names no experts"), ("../unet", ["a"], "no name of a folder")):
        save_router(experts.router, path, component, hashes)
        with pytest.raises(ValueError, match=message):
            load_router(path)
    save_router(experts.router, path, "unet", ["a", "b", "c"])
    with pytest.raises(ValueError, match="size mismatch for codes"):
        load_router(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=str(path)):
        load_router(path)


def test_what_cannot_be_served_is_refused(experts: Experts) -> None:
    routed = Routed(experts, pipeline(experts), encode=encode)
    empty: Any
    for empty in ([], "a shoe"):
        with pytest.raises(ValueError, match="list of strings, and not empty"):
            routed(empty)
    with pytest.raises(ValueError, match="2 prompts need as many seeds, got 1"):
        routed(PROMPTS[:2], seeds=[0])
    with pytest.raises(ValueError, match="no component 'transformer'"):
        Routed(experts, pipeline(experts), "transformer", encode)
    other = Routed(experts, pipeline(experts), encode=lambda prompts: torch.ones(len(prompts), WIDTH + 1))
    with pytest.raises(ValueError, match="come from another encoder"):
        other(PROMPTS)
