"""Hearing: sound to features, and the conformer that turns features into rows of the decoder."""
