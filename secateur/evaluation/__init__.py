"""One instrument for every kind of model: what an evaluation records, how records merge, and what has changed since."""
