"""Events: the first non-finite value of a run, found in the numbers of a step."""
