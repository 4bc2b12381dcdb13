"""What the family sees with: the SigLIP towers, and the way from their features to the decoder.

`encoder` has the blocks that both towers are made of; `hd` is phi-4-multimodal's half (crops of
448 × 448), `naflex` phi-4-reasoning-vision's (one image at its own shape). From a picture file to
the tensors that these take: `phikit.chat.images`.
"""
