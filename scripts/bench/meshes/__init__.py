"""The parts of the bench of meshes and voxels."""
