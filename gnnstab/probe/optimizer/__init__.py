"""Optimizer: what updates do to the loss and to the output, by real steps on a copy and by the gradients of a run."""
