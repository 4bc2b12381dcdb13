"""Weights in 8 and 4 bits: packing, calibration, layers, files, and what they cost in quality."""
