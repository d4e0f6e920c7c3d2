"""The proof that what is tuned on a small model holds for a large one."""
