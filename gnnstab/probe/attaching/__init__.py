"""Attaching: the hooks on a model, the softmax seen inside a layer, and where a step begins and ends."""
