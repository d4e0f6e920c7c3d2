"""Files of examples in, packed corpus out: what fine-tuning trains on."""
