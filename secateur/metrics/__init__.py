"""Measures of quality, speed and size that every domain shares."""
