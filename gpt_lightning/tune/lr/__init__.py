"""The learning rate of a run, found by short runs."""
