"""Building blocks of procedural splat scenes: surfels, noise, surfaces, trees, light and view-dependent lobes."""
