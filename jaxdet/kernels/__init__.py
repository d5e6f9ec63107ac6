"""Convolution and pooling that are fast on a CPU; on other devices they are XLA's own."""
