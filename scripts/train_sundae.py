"""SUNDAE from photographs: python scripts/train_sundae.py CAPTURE scene.safetensors --keep 0.25

Trains a scene, prunes it by the spectrum of its graph (once after it, or again and again within), then trains what is
left together with the features and the head that mend its renders. Writes all of it into one file, and prints a JSON
record: quality on the test photographs with and without the head, Gaussians, bytes, frames a second, seconds.
"""

import argparse
import json
from pathlib import Path

import torch

from compress3d.captures import read_capture
from compress3d.splats.compensation import FeatureHead, GainUNet
from compress3d.splats.pruning import sundae
from compress3d.splats.sundae import Compensate, CompensatedScene, save_compensated, spectral_cut
from compress3d.splats.train import Training, train
from secateur.console import progress_bar, stretch
from secateur.metrics.image import psnr, ssim
from secateur.metrics.speed import measure_speed


def main(options: argparse.Namespace) -> dict[str, object]:
    capture = read_capture(options.capture, long_side=options.long_side)
    learnt, test = capture.subset(capture.train), capture.subset(capture.test)
    continuous = sundae(options.keep, options.gamma) if options.schedule == "continuous" else None
    with progress_bar() as report:
        scene, warmed = train(
            capture,
            steps=options.warmup,
            training=Training(pruning=continuous, seed=options.seed),
            report=stretch(report, 0.0, 0.6),
        )
        pruned = scene if continuous is not None else spectral_cut(scene, options.keep, options.gamma)
        head = (
            GainUNet(options.width or 64)
            if options.head == "gain"
            else FeatureHead(options.features, options.width or 16)
        )
        # The released network knows no alpha: it is trained and shown on one background.
        compensate = Compensate(options.steps, backgrounds=0.0 if options.head == "gain" else 0.5, seed=options.seed)
        compensated, record = compensate(
            CompensatedScene.start(pruned, head), [learnt], report=stretch(report, 0.6, 1.0)
        )
    size = save_compensated(options.output, compensated, half=options.half)

    photographs = torch.stack([test.image(index) for index in range(len(test))])
    with torch.no_grad():
        both = list(compensated.render_both(test.cameras, test.background))
        speed = measure_speed(lambda frame: compensated.render(test.cameras[frame], test.background), min(4, len(test)))
    with_head, without_head = (torch.stack(images).clamp(0, 1) for images in zip(*both, strict=True))
    return {
        "capture": capture.name,
        "schedule": options.schedule,
        "head": head.name,
        "head_parameters": sum(parameter.numel() for parameter in head.parameters()),
        "gaussians_before": len(scene),
        "gaussians": len(compensated),
        "bytes": size,
        "psnr_before_pruning": None if continuous or warmed.quality is None else warmed.quality.mean_psnr,
        "psnr": {
            "with_head": float(psnr(with_head, photographs).mean()),
            "without_head": float(psnr(without_head, photographs).mean()),
        },
        "ssim": {
            "with_head": float(ssim(with_head, photographs).mean()),
            "without_head": float(ssim(without_head, photographs).mean()),
        },
        "frames_per_second": speed.frames_per_second,
        "steps": {"warmup": options.warmup, "joint": options.steps},
        "seconds": {"warmup": warmed.seconds["train"], "joint": record.fit.seconds},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", type=Path, help="folder of posed photographs")
    parser.add_argument("output", type=Path, help="scene, features and head, as safetensors")
    parser.add_argument("--keep", type=float, default=0.25, help="share of the Gaussians that stays")
    parser.add_argument("--gamma", type=float, default=0.8, help="how much the high end of the spectrum counts")
    parser.add_argument("--schedule", choices=["one-shot", "continuous"], default="one-shot")
    parser.add_argument("--head", choices=["features", "gain"], default="features", help="gain: the released U-Net")
    parser.add_argument("--features", type=int, default=8, help="feature channels of each Gaussian, 4 bytes each")
    parser.add_argument("--width", type=int, help="channels of the head (16; of the U-Net 64)")
    parser.add_argument("--warmup", type=int, default=2000, help="steps of training the scene")
    parser.add_argument("--steps", type=int, default=1000, help="steps of training scene and head together")
    parser.add_argument("--long-side", type=int, help="the most pixels of the longer side of the photographs")
    parser.add_argument("--half", action="store_true", help="write all but the positions as float16")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(main(parser.parse_args()), indent=2))
