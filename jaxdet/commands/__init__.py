"""One file a command: `run` does it once its words are understood, and returns the exit code."""
