"""The sections of the bench of networks, one file each, and what they share."""
