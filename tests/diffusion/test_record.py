"""An evaluation of diffusion models as the shared record."""

import json

import jsonschema
import pytest

from diffusion.evaluate import evaluate
from diffusion.record import subject_of
from secateur.evaluation.record import EvaluationRecord
from secateur.evaluation.run import Start
from secateur.evaluation.schema import record_schema
from secateur.report.record import to_json
from tests.diffusion.test_evaluate import Pixels, Toy, judge, noise_of, sampling


def test_the_record_says_what_was_measured() -> None:
    found, _ = evaluate(
        Toy(),
        {"off": Toy(0.3)},
        sampling(36, labelled=True),
        judges=[judge()],
        classifier=Pixels(),
        example_inputs=noise_of(range(4)),
        repeats=3,
    )
    dense, off = subject_of(found.reference, "dense"), subject_of(found.candidates[0], "off")
    record = EvaluationRecord(
        kind="diffusion", runs=(Start.now().run({}, (), {}),), protocol={}, reference=dense, candidates=(off,)
    )
    jsonschema.validate(json.loads(json.dumps(to_json(record), allow_nan=False)), record_schema())
    paired, accuracy, cost = (getattr(found.candidates[0], name) for name in ("paired", "accuracy", "cost"))
    assert off.measurements["psnr"].value == pytest.approx(paired.mean_psnr)
    assert off.measurements["psnr"].interval == paired.psnr_interval
    assert off.measurements["latent_mse"].value == pytest.approx(0.09, rel=1e-4)
    assert off.parts["samples"].columns["latent_mse"].values == paired.latent_mse
    assert off.measurements["accuracy"].change == accuracy.change and accuracy.answers
    distance = off.measurements["fd-quarters"]
    assert distance.value == found.candidates[0].distances[0].frechet
    assert distance.noise is not None and 0 < distance.noise.value < (distance.value or 0)
    kernel = off.measurements["kid-quarters"]
    assert kernel.noise is not None and kernel.noise.value < found.candidates[0].distances[0].kid.std
    assert (off.measurements["params"].value, off.measurements["size"].value) == (cost.params, cost.bytes)
    assert off.measurements["macs"].value == cost.macs / 4 and off.measurements["latency"].samples == 3
    assert dense.measurements.keys() == off.measurements.keys() - {
        "psnr",
        "ssim",
        "latent_mse",
        "relative_latent_error",
    }
