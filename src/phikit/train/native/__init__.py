"""C kernels for what training does between the matrix products."""
