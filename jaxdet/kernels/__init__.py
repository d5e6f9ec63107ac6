"""Convolutions and max pools that are fast on CPUs; max pools that are deterministic on GPUs."""
