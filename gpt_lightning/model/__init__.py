"""The model, in torch alone: architecture, loss, sampling, counts, Hugging Face weights."""
