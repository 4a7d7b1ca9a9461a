"""Compression of 3D scenes: Gaussian splats, hash-grid NeRFs, meshes."""

import secateur as secateur  # It settles how OpenMP threads wait, which must be known before torch is loaded.
