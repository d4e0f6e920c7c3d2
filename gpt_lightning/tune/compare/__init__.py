"""Is a change better here, and at what cost? Arms of a stack, trained with the same seeds."""
