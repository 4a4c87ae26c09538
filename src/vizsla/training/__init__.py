"""The training loop and what belongs to it: updates, events, checkpoints, evaluation."""
