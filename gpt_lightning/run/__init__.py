"""One run: a stack of YAML overlays and flags, built into module, data and Trainer, trained into one folder."""
