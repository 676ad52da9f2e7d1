"""Buffering: from tensors of one step to the rows of a trace, without waiting for a device."""
