"""Convolution and max pooling that are fast on CPUs; GPUs use XLA's own, if it is deterministic."""
