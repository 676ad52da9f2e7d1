"""Batches: the data that people have, as arguments of a forward and under the names of its tensors."""
