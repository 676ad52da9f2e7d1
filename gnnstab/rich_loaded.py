"""Loads rich, which draws a number from `random` as it is loaded, with the caller's draws left alone; imported before whatever needs it."""

import random
from importlib import import_module

_state = random.getstate()
import_module("rich.style")
random.setstate(_state)
