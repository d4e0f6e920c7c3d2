"""A scaling law on the user's own corpus: what a run will reach, and its best size, before paying for it."""
