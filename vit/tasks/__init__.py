"""Tasks: what a network is trained for and judged by, and images to be harder than single pieces of clothing."""
