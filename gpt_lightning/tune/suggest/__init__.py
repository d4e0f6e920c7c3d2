"""Experience: what the published laws say of a run before it starts."""
