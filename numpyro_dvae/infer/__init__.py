"""Inference algorithms, one file each, over the particles of any NumPyro model and guide."""
