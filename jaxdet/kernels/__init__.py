"""Convolutions and max pools that are fast on CPUs; max pools that are deterministic on GPUs.

Also the options of the compiler, and programs that are kept on disk.
"""
