"""Sparse voxels: grids of features that know only what is occupied, pruned from coarse to fine by a query."""
