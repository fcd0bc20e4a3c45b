"""Measurements: speed and memory as ratios to named peers, taken in one run."""
