"""Inference for Pyro models with discrete latents."""
