"""Tune narrow, shallow proxies of a wide model, and carry what they say over to it."""
