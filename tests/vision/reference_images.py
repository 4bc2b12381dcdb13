"""transformers' own phi-4-multimodal image processor, run without torchvision.

Its class is imported as it is; of torchvision it calls three functions, which are given here by
torch: `resize` on 8-bit samples is `torch.nn.functional.interpolate`, as torchvision itself does.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class Functional(types.ModuleType):
    class InterpolationMode:
        LANCZOS, BILINEAR, BICUBIC = 1, 2, 3

    @staticmethod
    def resize(image, size, interpolation=2, antialias=True):
        return F.interpolate(
            image[None], size=tuple(size), mode=MODES[int(interpolation)], align_corners=False,
            antialias=antialias,
        )[0]  # fmt: skip

    @staticmethod
    def pad(image, padding, fill):
        left, top, right, bottom = padding
        assert (left, top, fill) == (0, 0, [255, 255, 255])
        return F.pad(image, (0, right, 0, bottom), value=255)

    @staticmethod
    def normalize(image, mean, std, inplace=False):
        return (image - mean[:, None, None]) / std[:, None, None]


def phi4_multimodal_processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: list of uint8 [H, W, 3] arrays → the processor's output."""
    pytest.importorskip("transformers")
    functional = Functional("torchvision.transforms.v2.functional")
    v2 = types.ModuleType("torchvision.transforms.v2")
    v2.functional = functional  # type: ignore[attr-defined]
    name = "transformers.models.phi4_multimodal.image_processing_phi4_multimodal"
    import transformers.image_processing_backends as backends

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        patch.setitem(sys.modules, "torchvision.transforms", types.ModuleType("transforms"))
        patch.setitem(sys.modules, "torchvision.transforms.v2", v2)
        patch.delitem(sys.modules, name, raising=False)
        __import__(name)
        module = sys.modules[name]
    monkeypatch.setattr(backends, "tvF", functional, raising=False)
    monkeypatch.setattr(backends, "pil_torch_interpolation_mapping", {2: 2, 3: 3})
    cls = module.Phi4MultimodalImageProcessor
    processor = object.__new__(cls)  # its initialiser only stores what is passed below

    def run(pictures: list[np.ndarray]) -> dict[str, Any]:
        return cls._preprocess(
            processor,
            [torch.from_numpy(p.copy()).permute(2, 0, 1).contiguous() for p in pictures],
            do_resize=True, size=backends.SizeDict(height=448, width=448), resample=3,
            do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
            image_mean=tuple(cls.image_mean), image_std=tuple(cls.image_std),
            patch_size=cls.patch_size, dynamic_hd=cls.dynamic_hd, return_tensors=None,
        ).data  # fmt: skip

    run.dynamic = lambda *args, **kwargs: cls.dynamic_preprocess(processor, *args, **kwargs)
    return run
