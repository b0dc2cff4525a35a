"""A training step on a GPU that is not there: kernels and bytes as the compiler makes them, times by a roofline."""
