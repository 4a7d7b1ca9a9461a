"""One run, written down: `results.json` and a page with pictures that needs nothing but itself."""
