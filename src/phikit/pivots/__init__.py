"""Pivotal Token Search: the single tokens at which a model's solution is won or lost.

Start with `search.py` for the method as a whole; `evidence.py` holds the statistics.
"""
