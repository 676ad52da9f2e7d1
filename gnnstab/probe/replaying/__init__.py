"""Replaying: a copy of the model, and a forward that runs again on it."""
