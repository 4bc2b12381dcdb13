"""Teachers, seeds, workflows and dataset types that write new training data."""
