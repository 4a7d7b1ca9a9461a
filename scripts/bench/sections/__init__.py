"""The sections of the splat bench: each names its parts with `jobs(settings)`."""
