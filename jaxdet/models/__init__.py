"""Flax linen modules, one architecture a file."""
