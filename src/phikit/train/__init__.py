"""One training loop, its objectives, and the stages that recipes name."""
