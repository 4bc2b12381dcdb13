"""What a run showed: reads a run directory, works out the findings, draws the page."""
