"""Text in, batches of token windows out: tokenizer, corpora on disk, sample order, DataModule.

Everything but `datamodule.py` is free of torch, so that `prepare` starts fast and runs anywhere.
"""
