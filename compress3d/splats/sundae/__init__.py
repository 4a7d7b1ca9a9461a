"""SUNDAE (arXiv 2405.00676): spectral pruning, and a network that mends what the scene that is left renders."""

from compress3d.splats.sundae.compensated import CompensatedScene
from compress3d.splats.sundae.files import load_compensated, save_compensated
from compress3d.splats.sundae.train import BothPsnr, Compensate, CompensationRecord, psnr_both, spectral_cut

__all__ = [
    "BothPsnr",
    "Compensate",
    "CompensatedScene",
    "CompensationRecord",
    "load_compensated",
    "psnr_both",
    "save_compensated",
    "spectral_cut",
]
