"""The same models in other libraries, timed in the same run; imported only where installed."""
