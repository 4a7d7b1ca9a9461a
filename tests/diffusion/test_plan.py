from __future__ import annotations

import pytest

from diffusion import architectures, example_inputs
from diffusion.units import prunable
from secateur.allocation import Budget
from secateur.surgery.cost import count_bytes, count_params
from secateur.surgery.plan import measure, plan, plan_evenly
from tests.diffusion.models import FAMILIES, random_model, run


@pytest.mark.parametrize("family", FAMILIES)
def test_example_inputs_run_every_family(family: str) -> None:
    model = random_model(family)
    inputs = example_inputs(model, batch=2, size=8 if family != "flux" else 4, text_tokens=5)
    shape = model(**inputs, return_dict=False)[0].shape
    assert shape == run(family)(model).shape


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("SD_1_5", 859_520_964),
        ("SDXL", 2_567_463_684),
        ("DIT_XL_2", 749_826_464),
        ("SD_3_MEDIUM", 2_028_328_000),
        ("FLUX_DEV", 11_901_408_320),
    ],
)
def test_sizes_of_known_models(name: str, params: int) -> None:
    model = getattr(architectures, name).build()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert count_params(model) == params


def test_stable_diffusion_is_planned_on_the_meta_device() -> None:
    model = architectures.SD_1_5.build()
    network = prunable(model, ("heads", "neurons"), example_inputs(model))
    # Convolutions, linear layers and attention's products at 64 x 64 latents: 338.6 + 63 G.
    assert measure(network).macs == 401_636_720_640
    planned = plan_evenly(network, Budget(share=0.8))
    assert planned.by_kind() == {"heads": (204, 256), "neurons": (39_936, 49_920)}
    assert planned.dense.params == 859_520_964
    lost = planned.dense.params - planned.pruned.params
    assert planned.dense.bytes - planned.pruned.bytes == 4 * lost


@pytest.mark.slow
def test_stable_diffusion_xl_is_planned_on_the_meta_device() -> None:
    model = architectures.SDXL.build()
    network = prunable(model, ("heads", "neurons"), example_inputs(model))
    # Convolutions and linear layers, and attention's products at 128 x 128 latents: 2,988 + 393 G.
    assert measure(network).macs == 3_380_618_199_040
    planned = plan_evenly(network, Budget(share=0.8))
    assert planned.by_kind() == {"heads": (2_080, 2_600), "neurons": (266_240, 332_800)}
    assert planned.dense.params == 2_567_463_684
    lost = planned.dense.params - planned.pruned.params
    assert planned.dense.bytes - planned.pruned.bytes == 4 * lost


def test_a_plan_is_what_the_cut_gives() -> None:
    model = random_model("unet")
    network = prunable(model, ("heads", "channels"), example_inputs(model, size=8, text_tokens=5))
    planned = plan_evenly(network, Budget(share=0.5, cost="params"))
    keep = {group.name: group.cost["params"] < 0 for group in network.groups()}
    for group in network.groups():
        keep[group.name][: planned.units[group.name][0]] = True
    smaller = network.cut(keep)
    assert plan(network, keep) == planned
    assert planned.pruned.params == count_params(smaller.module)
    assert planned.pruned.bytes == count_bytes(smaller.module)
    assert planned.pruned == measure(smaller)
    with pytest.raises(ValueError, match="floors"):
        plan_evenly(network, Budget(share=0.01))


def test_only_denoising_networks_have_example_inputs() -> None:
    from tests.diffusion.models import diffusers

    with pytest.raises(ValueError, match="no denoising network"):
        example_inputs(diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4))


def test_latents_of_no_size_are_refused() -> None:
    model = random_model("unet", sample_size=None)
    assert example_inputs(model, size=8)["sample"].shape[2:] == (8, 8)
    with pytest.raises(ValueError, match="sample_size is null"):
        example_inputs(model)
