"""Tokens out of a model: batched generation, scoring, KV cache, sampling."""
