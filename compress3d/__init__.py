"""Compression of 3D scenes: Gaussian splats, hash-grid NeRFs, meshes."""
