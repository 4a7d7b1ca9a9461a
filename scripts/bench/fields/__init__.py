"""The parts of the bench of neural fields."""
