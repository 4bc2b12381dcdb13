"""Out to other runtimes, behind a parity gate."""
