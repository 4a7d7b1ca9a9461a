"""APTP: a router that sends each prompt to one of a few pruned experts."""
