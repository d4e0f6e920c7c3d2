"""The eight checks of benchmark_gpu.py, in the order that makes sense on a GPU that nobody has trained on yet."""
