import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.evaluate import evaluate
from diffusion.sampling import PipelineSource, Sampling
from secateur.evaluation.chunks import ChunkStore
from secateur.metrics.distribution import DistributionJudge, Moments, frechet_distance
from secateur.report.record import to_json
from secateur.surgery.cost import count_macs
from secateur.training.seeding import generator_at


class Toy(nn.Module):
    """Latents out of noise: a linear layer for a network, and an error that can be set."""

    def __init__(self, error: float = 0.0, width: int = 32) -> None:
        super().__init__()
        self.error = error
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.hidden, self.out = nn.Linear(144, width), nn.Linear(width, 144)
        self.requires_grad_(False)

    def forward(self, noise: Tensor) -> Tensor:
        flat = noise.flatten(1)
        return (0.5 * torch.tanh(flat + 0.01 * self.out(self.hidden(flat))) + self.error).view_as(noise)


class Pixels:
    """Means of quarters of a picture as its vector, and the brightest of them as its class."""

    name, weights_sha256, dimensions = "quarters", "0" * 64, 4
    classes = ("a", "b", "c", "d")

    def __call__(self, images: Tensor, /) -> Tensor:
        return images.unfold(2, 6, 6).unfold(3, 6, 6).mean(dim=(1, 4, 5)).flatten(1)

    def classify(self, images: Tensor) -> Tensor:
        return self(images).argmax(dim=1)


def noise_of(seeds: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(1, 12, 12, generator=generator_at(seed, 0)) for seed in seeds])


def sample(model: nn.Module, seeds: Sequence[int]) -> Tensor:
    return model(noise_of(seeds))


def sampling(count: int = 20, batch_size: int = 8, labelled: bool = False) -> Sampling:
    return Sampling(
        sample, tuple(range(count)), tuple(n % 4 for n in range(count)) if labelled else None, batch_size=batch_size
    )


def judge(held_out: bool = True) -> DistributionJudge:
    images = torch.rand(60, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return DistributionJudge.of(Pixels(), images[:30], images[30:] if held_out else None)


def test_a_model_is_at_no_distance_from_itself() -> None:
    record, _ = evaluate(Toy(), {"same": Toy()}, sampling(labelled=True), judges=[judge()], classifier=Pixels())
    (same,) = record.candidates
    assert record.reference.paired is None
    assert same.paired is not None
    assert set(same.paired.latent_mse) == {0.0}
    assert same.paired.relative_latent_error == 0.0
    assert math.isinf(same.paired.mean_psnr)
    assert same.paired.mean_ssim == 1.0
    assert same.paired.psnr_interval is None
    assert same.distances == record.reference.distances
    assert same.accuracy is not None
    assert same.accuracy.change is not None
    assert (same.accuracy.change.low, same.accuracy.change.high) == (0.0, 0.0)


def test_known_errors_are_measured() -> None:
    record, _ = evaluate(Toy(), {"off": Toy(0.1), "far": Toy(0.2)}, sampling())
    off, far = (candidate.paired for candidate in record.candidates)
    assert off is not None
    assert far is not None
    assert off.mean_latent_mse == pytest.approx(0.01, rel=1e-4)
    assert far.mean_latent_mse == pytest.approx(0.04, rel=1e-4)
    # The pictures are half the latents, on which nothing is cut off: 20 log10 (2 / error).
    assert off.mean_psnr == pytest.approx(20 * math.log10(20), abs=1e-3)
    assert far.mean_psnr == pytest.approx(20 * math.log10(10), abs=1e-3)
    dense = Toy()(noise_of(range(20))).double()
    assert far.relative_latent_error == pytest.approx(0.04 * dense.numel() / float(dense.square().sum()), rel=1e-4)
    assert far.mean_ssim is not None
    assert off.mean_ssim is not None
    assert far.mean_ssim < off.mean_ssim < 1
    assert off.psnr_interval is not None
    assert off.psnr_interval.low <= off.mean_psnr <= off.psnr_interval.high
    assert len(off.latent_mse) == len(off.psnr) == 20


def test_distances_name_their_features_and_stand_beside_the_floor() -> None:
    record, _ = evaluate(Toy(), {"off": Toy(0.3)}, sampling(), judges=[judge(), judge(held_out=False)])
    dense, off = record.reference.distances, record.candidates[0].distances
    vectors = Pixels()(Toy(0.3)(noise_of(range(20))) / 2 + 0.5)
    assert off[0].name == "FD-quarters"
    assert off[0].frechet == pytest.approx(frechet_distance(Moments.of(vectors), judge().moments), rel=1e-6)
    assert off[0].frechet > dense[0].frechet
    assert off[0].samples == 20
    assert off[0].floor == dense[0].floor
    assert off[0].floor is not None
    assert off[1] == replace(off[0], floor=None)


def test_class_accuracy_is_that_of_what_was_asked_for() -> None:
    record, _ = evaluate(Toy(), {"off": Toy(0.1)}, sampling(labelled=True), classifier=Pixels())
    shown = Pixels().classify(Toy()(noise_of(range(20))))
    right = shown == torch.arange(20) % 4
    accuracy = record.reference.accuracy
    assert accuracy is not None
    assert accuracy.mean == pytest.approx(float(right.float().mean()))
    assert accuracy.by_class == {name: float(right[n::4].float().mean()) for n, name in enumerate("abcd")}
    assert accuracy.change is None
    assert evaluate(Toy(), {}, sampling(), classifier=Pixels())[0].reference.accuracy is None


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_of_any_size_give_the_same_numbers(batch_size: int) -> None:
    models = {"off": Toy(0.1)}
    whole, pictures = evaluate(Toy(), models, sampling(batch_size=20, labelled=True), judges=[judge()], shown=9)
    parts, same = evaluate(Toy(), models, sampling(batch_size=batch_size, labelled=True), judges=[judge()], shown=9)
    one, other = whole.candidates[0], parts.candidates[0]
    assert one.paired is not None
    assert other.paired is not None
    assert other.paired.latent_mse == pytest.approx(one.paired.latent_mse, rel=1e-5)
    assert other.distances[0].frechet == pytest.approx(one.distances[0].frechet, rel=1e-5)
    for name in ("dense", "off"):
        assert pictures[name].shape == (9, 1, 12, 12)
        torch.testing.assert_close(pictures[name], same[name])


def test_costs_are_counted() -> None:
    inputs = torch.zeros(4, 1, 12, 12)
    record, _ = evaluate(Toy(), {"slim": Toy(width=16)}, sampling(4), example_inputs=inputs, repeats=2)
    dense, slim = record.reference.cost, record.candidates[0].cost
    assert dense is not None
    assert slim is not None
    assert dense.params == 2 * 144 * 32 + 144 + 32
    assert slim.macs == count_macs(Toy(width=16), inputs) == 4 * 2 * 144 * 16
    assert slim.bytes == 4 * slim.params
    assert slim.batch_size == 4
    assert slim.latency.repeats == 2
    assert 0 < slim.peak_memory.bytes <= dense.peak_memory.bytes


def test_a_record_becomes_json_and_repeats_exactly() -> None:
    first, _ = evaluate(Toy(), {"off": Toy(0.1)}, sampling(labelled=True), judges=[judge()], classifier=Pixels())
    again, _ = evaluate(Toy(), {"off": Toy(0.1)}, sampling(labelled=True), judges=[judge()], classifier=Pixels())
    assert (first.reference, first.candidates) == (again.reference, again.candidates)
    held = json.loads(json.dumps(to_json(first), allow_nan=False))
    assert held["candidates"][0]["distances"][0]["name"] == "FD-quarters"
    assert held["options"]["samples"] == 20


def test_pictures_below_the_window_of_ssim_have_none() -> None:
    def small(model: nn.Module, seeds: Sequence[int]) -> Tensor:
        return sample(model, seeds)[..., :8, :8]

    record, _ = evaluate(Toy(), {"off": Toy(0.1)}, replace(sampling(), sample=small))
    paired = record.candidates[0].paired
    assert paired is not None
    assert (paired.mean_ssim, paired.ssim, paired.ssim_interval) == (None, None, None)


def test_one_sample_has_no_interval() -> None:
    record, _ = evaluate(Toy(), {"off": Toy(0.1)}, sampling(1))
    paired = record.candidates[0].paired
    assert paired is not None
    assert paired.latent_mse_interval is None
    with pytest.raises(ValueError, match="at least 4 images of each set, got 1"):
        evaluate(Toy(), {}, sampling(1), judges=[judge()])


def test_samples_that_are_not_finite_are_counted_by_model() -> None:
    def broken(model: nn.Module, seeds: Sequence[int]) -> Tensor:
        latents = sample(model, seeds)
        if model.error:
            latents[1:3, 0, 0, 0] = torch.nan
        return latents

    with pytest.raises(ValueError, match="off: 2 of 8 latents are not finite, of seeds from 0"):
        evaluate(Toy(), {"off": Toy(0.1)}, replace(sampling(), sample=broken))


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="dense: 7 latents for 8 seeds"):
        evaluate(Toy(), {}, replace(sampling(), sample=lambda model, seeds: sample(model, seeds)[1:]))
    with pytest.raises(ValueError, match="call the candidate otherwise"):
        evaluate(Toy(), {"dense": Toy()}, sampling())
    with pytest.raises(ValueError, match="1 or 3 channels"):
        evaluate(Toy(), {"off": Toy()}, replace(sampling(), decode=lambda latents: latents.expand(-1, 4, -1, -1)))


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="different seeds"):
        Sampling(sample, (1, 2, 1))
    with pytest.raises(ValueError, match="2 seeds and 1 labels"):
        Sampling(sample, (1, 2), (0,))
    with pytest.raises(ValueError, match="batch_size"):
        Sampling(sample, (1, 2), batch_size=0)


def test_a_pruned_network_takes_the_place_of_the_pipelines_own() -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusion.pipeline import ClassToImage
    from diffusion.units import prunable

    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = diffusers.DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=4,
            in_channels=1,
            out_channels=1,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=4,
        ).eval()
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    pipeline, seeds = ClassToImage(scheduler, transformer=dense), tuple(range(6))
    network = prunable(dense, ["heads"])
    keep = {group.name: torch.arange(group.size) < 3 for group in network.groups()}
    inputs = {
        "hidden_states": torch.zeros(2, 1, 8, 8),
        "timestep": torch.zeros(2, dtype=torch.int64),
        "class_labels": torch.zeros(2, dtype=torch.int64),
    }
    asked = {seed: seed % 4 for seed in seeds}
    chosen = Sampling(PipelineSource(pipeline, asked, steps=3, guidance=1.5), seeds, batch_size=4)
    candidates = {"same": network.cut({name: torch.ones_like(mask) for name, mask in keep.items()}).module}
    candidates["pruned"] = network.cut(keep).module
    record, pictures = evaluate(dense, candidates, chosen, example_inputs=inputs, repeats=1)
    same, pruned = record.candidates
    assert same.paired is not None
    assert pruned.paired is not None
    assert same.paired.mean_latent_mse == 0.0
    assert pruned.paired.mean_latent_mse > 0.0
    assert record.reference.cost is not None
    assert pruned.cost is not None
    assert pruned.cost.macs < record.reference.cost.macs
    made = pipeline([0, 1], seeds=[0, 1], num_inference_steps=3, guidance_scale=1.5, output_type="pt")
    torch.testing.assert_close(pictures["dense"][:2], made, rtol=1e-4, atol=1e-5)


def test_an_evaluation_that_was_stopped_goes_on_after_its_last_batch(tmp_path: Path) -> None:
    asked: list[int] = []
    stops = [8 + 8 + 4 + 4 + 8]

    def counted(model: nn.Module, seeds: Sequence[int]) -> Tensor:
        asked.extend(seeds)
        if stops and len(asked) == stops[0]:
            stops.clear()
            raise KeyboardInterrupt
        return sample(model, seeds)

    store = ChunkStore(tmp_path / "unfinished")
    how: dict[str, Any] = {"judges": [judge()], "classifier": Pixels(), "shown": 12}
    made, others = replace(sampling(labelled=True), sample=counted), {"off": Toy(0.1)}
    with pytest.raises(KeyboardInterrupt):
        evaluate(Toy(), others, made, store=store, identity="these", **how)
    asked.clear()
    again, pictures = evaluate(Toy(), others, made, store=store, identity="these", **how)
    assert asked == [*range(12, 20)] * 2
    whole, expected = evaluate(Toy(), others, sampling(labelled=True), **how)
    assert to_json(again.candidates) == to_json(whole.candidates)
    assert to_json(again.reference) == to_json(whole.reference)
    assert all(torch.equal(pictures[name], expected[name]) for name in expected)
    asked.clear()
    evaluate(Toy(), others, made, store=store, identity="others", **how)
    assert len(asked) == 40


def test_no_global_random_state_is_touched_and_no_pictures_are_kept_where_none_is_shown() -> None:
    before = torch.get_rng_state()
    record, pictures = evaluate(Toy(), {"off": Toy(0.1)}, sampling(), shown=0)
    assert torch.equal(torch.get_rng_state(), before) and not pictures
    assert record == replace(evaluate(Toy(), {"off": Toy(0.1)}, sampling())[0], seconds=record.seconds)
