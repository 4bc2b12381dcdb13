"""Evaluation: questions asked of a model, answers scored, differences with their intervals."""
