"""Export to the Hugging Face layout, and the gate: the same logits and the same text there.

What phikit writes already has that layout; exporting chooses the precision, completes the end
tokens, and proves that another implementation of the architecture agrees.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.errors import PhikitError
from phikit.files import atomic_directory, explain_os_errors
from phikit.models.checkpoint import load, save
from phikit.models.decoder import Decoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt",
)  # fmt: skip


@dataclass(frozen=True)
class Parity:
    """What the gate found, in float32 on the exported weights.

    Attributes:
        checked: False when transformers is not installed; `note` then says so.
        logit_difference: the largest absolute difference of a logit over all prompts.
        limit: what it may be.
        greedy_equal: how many of the prompts were continued by the very same tokens.
    """

    checked: bool
    note: str
    prompts: int = 0
    logit_difference: float = 0.0
    limit: float = 0.0
    greedy_equal: int = 0
    greedy_tokens: int = 0

    def row(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self)


def write_model(source: Path, target: Path, dtype: torch.dtype) -> Path:
    """Writes the model of `source` to `target` in this precision, with its tokenizer.

    Raises:
        PhikitError: the source is no model directory with a tokenizer, or cannot be written.
    """
    model = load(source, dtype)
    form = chat_format(Tokenizer.load(source))
    if not model.config.eos_ids:  # other runtimes stop at these
        model.config = replace(model.config, eos_ids=form.stop_ids, pad_id=form.pad_id)
    with atomic_directory(target) as directory:
        save(model, directory, dtype)
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                with explain_os_errors(directory / name, "writing"):
                    shutil.copyfile(source / name, directory / name)
    return target


def check_parity(directory: Path, prompts: Sequence[str], limit: float, max_tokens: int) -> Parity:
    """Holds the exported model against `transformers`: logits and greedy continuations.

    Raises:
        PhikitError: the logits differ by more than `limit`, or a continuation differs.
    """
    if importlib.util.find_spec("transformers") is None:
        return Parity(
            checked=False,
            note="parity not checked: transformers is not installed (phikit's extra `dev` has it)",
        )
    model = load(directory, torch.float32)
    form = chat_format(Tokenizer.load(directory))
    reference = load_reference(directory)
    rendered = [_render(form, prompt) for prompt in prompts]
    difference = max((logit_difference(model, reference, ids) for ids in rendered), default=0.0)
    ours = greedy(model, rendered, max_tokens, form.stop_ids)
    theirs = [reference_greedy(reference, ids, max_tokens, form) for ids in rendered]
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    if not difference <= limit:  # also when it is NaN
        raise PhikitError(
            f"{directory}: transformers computes other logits than phikit: they differ by up to "
            f"{difference:.2e}, more than {limit:.2e}",
            "do not publish this export; report it with the model's config.json",
        )
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        if a != b:
            raise PhikitError(
                f"{directory}: transformers continues {prompt!r} by {form.tokenizer.decode(b)!r}, "
                f"phikit by {form.tokenizer.decode(a)!r}, though logits agree to {difference:.2e}",
                "two tokens may be equally likely here: look at that place, or use other prompts",
            )
    return Parity(
        checked=True,
        note=f"transformers computes the same: logits within {difference:.1e}, "
        f"{equal} of {len(ours)} greedy answers identical",
        prompts=len(ours),
        logit_difference=difference,
        limit=limit,
        greedy_equal=equal,
        greedy_tokens=sum(map(len, ours)),
    )


def load_reference(directory: Path) -> Any:
    """The directory as transformers loads it, in float32."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True
        ).eval()
    finally:
        transformers.utils.logging.enable_progress_bar()


@torch.no_grad()
def logit_difference(model: Decoder, reference: Any, ids: Sequence[int]) -> float:
    """The largest absolute difference between the two models' logits on one prompt."""
    ids_1L = torch.tensor([list(ids)])
    return float((model(ids_1L) - reference(ids_1L).logits).abs().max())


def greedy(
    model: Decoder, prompts: Sequence[Sequence[int]], max_tokens: int, stop_ids: tuple[int, ...]
) -> list[list[int]]:
    """Each prompt's greedy continuation by our engine, as token ids without the prompt."""
    sampling = Sampling(temperature=0, max_tokens=max_tokens, stop_ids=stop_ids)
    requests = [Request(tuple(ids), sampling) for ids in prompts]
    return [list(group[0].completion_ids) for group in collect(LocalEngine(model), requests)]


@torch.no_grad()
def reference_greedy(
    reference: Any, ids: Sequence[int], max_tokens: int, form: ChatFormat
) -> list[int]:
    """A prompt's greedy continuation by transformers, as token ids without the prompt."""
    ids_1L = torch.tensor([list(ids)])
    room = reference.config.max_position_embeddings - len(ids)
    out = reference.generate(
        ids_1L, attention_mask=torch.ones_like(ids_1L), do_sample=False,
        max_new_tokens=min(max_tokens, room), eos_token_id=list(form.stop_ids),
        pad_token_id=form.pad_id,
    )  # fmt: skip
    return out[0, len(ids) :].tolist()


def _render(form: ChatFormat, prompt: str) -> list[int]:
    return form.render([{"role": "user", "content": prompt}], generation_prompt=True).ids
