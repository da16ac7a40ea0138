"""Run any model and guide, and say in arrays what happened."""
