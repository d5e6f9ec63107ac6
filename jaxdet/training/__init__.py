"""The training loop with its state, step, evaluation, checkpoints and run folders."""
