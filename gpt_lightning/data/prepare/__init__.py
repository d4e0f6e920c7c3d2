"""Text in, corpus out: the verb `prepare` and its parts."""
