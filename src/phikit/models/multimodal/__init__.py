"""phi-4-multimodal: phi-4-mini with eyes, ears and an adapter for each."""
