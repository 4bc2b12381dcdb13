"""Phi-4-mini-flash-reasoning: the SambaY decoder, half of whose layers have a memory of fixed size."""
