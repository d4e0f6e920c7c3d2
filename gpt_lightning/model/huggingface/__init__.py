"""Models in and out of Hugging Face's formats; the only place that knows its keys."""
