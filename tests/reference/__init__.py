"""Reference implementations in plain loops, in NumPy, which the tests compare with."""
