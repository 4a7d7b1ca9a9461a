"""One denoiser on several devices, each with its own rows of the latents."""

from diffusion.patch_parallel.exchange import Traffic
from diffusion.patch_parallel.parallel import Staleness, patch_parallel

__all__ = ["Staleness", "Traffic", "patch_parallel"]
