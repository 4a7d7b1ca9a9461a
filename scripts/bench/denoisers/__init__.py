"""The sections of the bench of diffusion models, one file each, and what they share."""
