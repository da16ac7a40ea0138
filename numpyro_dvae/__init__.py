"""Inference for NumPyro models with discrete latents."""
