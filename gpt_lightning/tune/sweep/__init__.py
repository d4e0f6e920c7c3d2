"""Many runs over a search space, on one machine or many: the best of them, and why it is the best."""
