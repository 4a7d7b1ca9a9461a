"""Pruned networks measured against the dense one, as a recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.calibrate import Generator
from diffusion.evaluate import Evaluation, evaluate
from diffusion.models import LoadedModel
from diffusion.prompting import Classes
from diffusion.recipe import Judging
from diffusion.sampling import Sampling
from secateur.console import Report, silent
from secateur.evaluation.chunks import ChunkStore
from secateur.metrics.distribution import DistributionJudge
from secateur.metrics.features import ClassifierFeatures, digit_features, fashion_features, unseen_digits
from secateur.recipe import to_plain
from secateur.surgery.manifest import hash_weights


def judge(
    model: LoadedModel,
    pruned: Mapping[str, nn.Module],
    generator: Generator,
    inputs: Any,
    report: Report = silent,
    store: ChunkStore | None = None,
) -> tuple[Evaluation, dict[str, Float[Tensor, "K C H W"]]]:
    """Sample all networks on the same seeds, none of which calibration saw, and measure them.

    Args:
        model: the dense model.
        pruned: the others by name.
        generator: makes the trajectories.
        inputs: arguments of one forward, by which networks are counted and timed.
        report: told how far it is.
        store: where what is known of finished samples is kept; None: nowhere.

    Returns:
        the record, and the first pictures of each by name.

    Raises:
        ValueError: as `diffusion.evaluate.evaluate`.
    """
    options = generator.file.recipe.evaluation
    sampling, judges, classifier = sampling_of(model, generator)
    return evaluate(
        model.network,
        pruned,
        sampling,
        judges=judges,
        classifier=classifier,
        example_inputs=inputs,
        repeats=options.repeats,
        shown=options.shown,
        report=report,
        store=store,
        identity=identity_of([model.network, *pruned.values()], generator),
    )


def sampling_of(
    model: LoadedModel, generator: Generator
) -> tuple[Sampling, list[DistributionJudge], ClassifierFeatures | None]:
    """How samples are made as the recipe says, and what judges them."""
    options = generator.file.recipe.evaluation
    asked = asked_of(generator)
    drawn = generator.trajectories(
        options.samples,
        seed=options.first_seed,
        steps=options.steps,
        guidance=options.guidance,
        prompts=asked,
    )
    judges, classifier = judges_of(options)
    labels = None if classifier is None else labels_of(model, asked, classifier.classes)
    sampling = Sampling(
        lambda network, seeds: drawn.sample(network, torch.tensor([seed - options.first_seed for seed in seeds])),
        tuple(range(options.first_seed, options.first_seed + options.samples)),
        None if labels is None else tuple(labels[index % len(labels)] for index in range(options.samples)),
        model.prompting.decode,
        options.batch_size,
    )
    return sampling, judges, classifier


def identity_of(networks: Sequence[nn.Module], generator: Generator) -> dict[str, Any]:
    """All that the samples of these networks depend on."""
    return {
        "weights": [hash_weights(network) for network in networks],
        "device": str(next(networks[0].parameters()).device),
        "recipe": to_plain(generator.file.recipe),
        "secateur": version("secateur"),
    }


def protocol_of(generator: Generator) -> dict[str, Any]:
    """How samples are made and judged, beside what an evaluation says itself."""
    options, calibration = generator.file.recipe.evaluation, generator.file.recipe.calibration
    return {
        "steps": options.steps or calibration.steps,
        "guidance": calibration.guidance if options.guidance is None else options.guidance,
        "prompts": asked_of(generator),
        "judge": options.judge,
    }


def asked_of(generator: Generator) -> list[str]:
    """What is asked for in evaluation, again and again."""
    prompts = generator.file.recipe.evaluation.prompts
    return generator.asked() if prompts is None else list(prompts)


def judges_of(options: Judging) -> tuple[list[DistributionJudge], ClassifierFeatures | None]:
    """The network that tells distances and classes, with real pictures of its kind; none where there is no judge."""
    from secateur.datasets import fashion_mnist

    if options.judge is None:
        return [], None
    if options.judge == "digits":
        features, real = digit_features(), unseen_digits().pixels()
    else:
        features, real = fashion_features(), fashion_mnist("test").pixels()
    half = len(real) // 2
    return [DistributionJudge.of(features, real[:half], real[half:])], features


def labels_of(model: LoadedModel, asked: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """The class of each prompt; None where a prompt asks for no class that is known."""
    from diffusion.demo.prompts import plain_prompts, training_prompts, unseen_prompts

    if isinstance(model.prompting, Classes):
        return [int(text) for text in asked]
    known: dict[str, int] = {}
    for index, name in enumerate(classes):
        try:
            texts = [*plain_prompts([name]), *unseen_prompts([name]), *training_prompts(name)]
        except KeyError:
            return None
        known |= dict.fromkeys(texts, index)
    return [known[text] for text in asked] if all(text in known for text in asked) else None
