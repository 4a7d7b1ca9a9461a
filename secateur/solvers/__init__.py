"""Solvers that pruning methods are thin wrappers of, one idea a file. Import them from their files."""
