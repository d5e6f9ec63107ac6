"""PyTorch counterparts of the benchmarks, timed if PyTorch is installed."""
