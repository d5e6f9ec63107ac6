"""The same work in PyTorch, which the benchmarks are compared with where it is installed."""
