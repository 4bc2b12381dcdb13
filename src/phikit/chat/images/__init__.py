"""From picture files to the tensors that the family's vision towers take.

`read` opens a file as 8-bit RGB; `hd` cuts it into crops for phi-4-multimodal, `naflex` into
patches for phi-4-reasoning-vision. Needs Pillow: `pip install -e '.[multimodal]'`.
"""
