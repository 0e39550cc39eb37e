"""The step, the loop around it, checkpoints, runs, evaluation and the command line."""
