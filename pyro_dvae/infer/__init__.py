"""Inference algorithms, one file each, over the particles of any Pyro model and guide."""
