"""Phi-4-mini-flash-reasoning: the SambaY decoder, most of whose memory has a fixed size."""
