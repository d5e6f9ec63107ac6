"""Convolution and max pooling that are fast on CPUs; other devices use XLA's own."""
