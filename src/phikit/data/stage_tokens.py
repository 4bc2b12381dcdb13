"""The stages that make token ids: `data.tokenizer` and `data.shards`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from phikit.chat.format import chat_format
from phikit.chat.templates import NANO_SPECIAL, THINK
from phikit.chat.tokenizer import BYTES, Tokenizer, train_bpe
from phikit.data.mix import LONG, PHI4_WEIGHTS, Share, mix, normalised
from phikit.data.shards import Pool, write_shards
from phikit.errors import PhikitError
from phikit.files import sha256_file
from phikit.records import Document, Sample, iter_records
from phikit.stage import Config, Context, Estimate, Stage, given

_BATCH = 512  # texts tokenised at once


class _Text(NamedTuple):
    """A text to train on. `trusted`: `<think>` in it is the control token, not its spelling."""

    source: str
    text: str
    id: str
    trusted: bool


def _texts(inputs: Mapping[str, Path]) -> Iterator[_Text]:
    """The texts of the documents and then of all sample inputs, streamed.

    Raises:
        PhikitError: a sample has no text (it was made for chat training only).
    """
    if "documents" in inputs:
        for document in iter_records(inputs["documents"] / "documents.parquet", Document):
            yield _Text(document.source, document.text, document.id, trusted=False)
    for folder in given(inputs, "samples"):
        path = folder / "samples.parquet"
        for sample in iter_records(path, Sample):
            if not sample.text:
                raise PhikitError(
                    f"{path}: sample {sample.id} ({sample.kind}) has no text to pretrain on",
                    "give samples of a stage that writes texts, or leave this input out",
                )
            yield _Text(sample.source, sample.text, sample.id, trusted=True)


class TokenizerConfig(Config):
    """A byte-level BPE with the control tokens of the phi-4 chat format, digits split."""

    vocab_size: int = Field(
        default=2048,
        ge=BYTES + len(NANO_SPECIAL),
        description="tokens in all, control tokens included",
    )
    max_chars: int = Field(
        default=6_000_000,
        gt=0,
        description="text to learn from; each source class gives its weight's part of it, or all "
        "it has",
    )
    weights: dict[str, float] = Field(
        default_factory=lambda: dict(PHI4_WEIGHTS),
        description="part of each source class, as in data.shards",
    )


def run_tokenizer(
    ctx: Context, settings: TokenizerConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Learns the tokenizer from a sample of the mixture and writes it for transformers to load."""
    present: Counter[str] = Counter()
    for text in _texts(inputs):
        present[text.source] += len(text.text)
    weights = normalised(settings.weights, present, "characters")
    rates = {s: w * settings.max_chars / present[s] for s, w in weights.items()}
    used: Counter[str] = Counter()

    def sampled() -> Iterator[str]:
        for source, text, name, _ in _texts(inputs):
            # a text is in or out by a hash of its id, whatever else there is
            digest = hashlib.blake2b(
                f"{ctx.seed}/tokenizer/{name}".encode(), digest_size=4
            ).digest()
            if int.from_bytes(digest, "little") < rates.get(source, 0) * 2**32:
                used[source] += len(text)
                ctx.progress.update(sum(used.values()), settings.max_chars)
                yield text

    tokenizer = train_bpe(sampled(), settings.vocab_size, NANO_SPECIAL)
    tokenizer.config = chat_format(tokenizer).tokenizer_config()
    tokenizer.save(ctx.dir / "tokenizer")
    probe = [t.text for t in islice(_texts(inputs), 200)]
    bytes_per_token = sum(len(t.encode()) for t in probe) / max(
        1, sum(map(len, tokenizer.encode_batch(probe)))
    )
    return {
        "vocab_size": tokenizer.vocab_size,
        "chars": dict(sorted(used.items())),
        "bytes_per_token": round(bytes_per_token, 2),
    }


class ShardsConfig(Config):
    """The mixture: how much of which source class, to a budget of tokens."""

    tokens: int = Field(
        default=6_000_000, gt=0, description="tokens to train on, repetitions included"
    )
    weights: dict[str, float] = Field(
        default_factory=lambda: dict(PHI4_WEIGHTS),
        description="part of each source class (they need not sum to 1); a class with a weight "
        "must be there, and one that is there must have a weight, if only 0",
    )
    min_tokens: int = Field(default=8, ge=1, description="shorter documents are left out")
    max_tokens: int | None = Field(
        default=None, description="longer documents are left out; by default packing splits them"
    )
    long_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="part of the tokens that naturally long documents get; the rest is the mixture "
        "as in pretraining (technical report, §3.3: 0.3)",
    )
    long_sources: tuple[str, ...] = Field(
        default=("acquired", "code"), description="source classes whose long documents count"
    )
    long_min_tokens: int = Field(default=512, description="documents at least this long are long")
    long_boost_min_tokens: int = Field(
        default=1024, description="long documents at least this long are up-weighted"
    )
    long_boost: int = Field(
        default=2,
        ge=1,
        description="how often these are drawn while the other long ones are drawn once",
    )


def run_shards(ctx: Context, settings: ShardsConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Tokenises everything once, draws the mixture and writes it in the order of training."""
    folder = inputs["tokenizer"] / "tokenizer"
    tokenizer = Tokenizer.load(folder)
    end = chat_format(tokenizer).document_end_id
    pool = Pool(ctx.dir / ".pool.bin")
    dropped: Counter[str] = Counter()
    for done, (source, ids) in enumerate(_encoded(tokenizer, _texts(inputs), end)):
        if done % _BATCH == 0:
            ctx.progress.update(done, 2 * done + 10_000, documents=done)
        if len(ids) < settings.min_tokens:
            dropped["too short"] += 1
        elif settings.max_tokens is not None and len(ids) > settings.max_tokens:
            dropped["too long"] += 1
        else:
            pool.add(source, [ids])
    pool.finish()
    present = {s: int(pool.lengths[pool.of(s)].sum()) for s in pool.names}
    shares = _shares(settings, pool, normalised(settings.weights, present))
    mixture = mix(pool.lengths, shares, ctx.seed)
    tokens = write_shards(
        ctx.dir,
        pool.read(mixture.order),
        mixture.share,
        [share.name for share in shares],
        {"vocab_size": tokenizer.vocab_size, "document_end_id": end,
         "tokenizer": sha256_file(folder / "tokenizer.json")},
    )  # fmt: skip
    pool.path.unlink()
    return {
        "tokens": tokens,
        "documents": len(mixture.order),
        "sources": mixture.stats,
        "dropped": dict(dropped),
        "unused": {s: n for s, n in sorted(present.items()) if not settings.weights[s]},
    }


def _encoded(
    tokenizer: Tokenizer, texts: Iterable[_Text], end: int
) -> Iterator[tuple[str, NDArray[np.uint32]]]:
    """(source class, ids with the end token) of each text, in order."""
    texts = iter(texts)
    while batch := list(islice(texts, _BATCH)):
        # the few with control tokens are encoded piecewise, all others at once
        special = [t.trusted and any(token in t.text for token in THINK) for t in batch]
        plain = ["" if s else t.text for t, s in zip(batch, special, strict=True)]
        for text, is_special, ids in zip(
            batch, special, tokenizer.encode_arrays(plain), strict=True
        ):
            if is_special:
                ids = np.array(tokenizer.encode_control(text.text, THINK), np.uint32)
            yield text.source, np.append(ids, np.uint32(end))


def _shares(settings: ShardsConfig, pool: Pool, weights: Mapping[str, float]) -> list[Share]:
    recall = settings.tokens * (1 - settings.long_share)
    shares = [Share(s, pool.of(s), recall * w) for s, w in weights.items()]
    if not settings.long_share:
        return shares
    eligible = [
        d
        for source in settings.long_sources
        if source in pool.names
        for d in pool.of(source).tolist()
        if pool.lengths[d] >= settings.long_min_tokens
    ]
    if not eligible:
        raise PhikitError(
            f"long_share is {settings.long_share}, but no document of "
            f"{', '.join(settings.long_sources)} has {settings.long_min_tokens} tokens or more",
            "lower long_min_tokens, or name other long_sources",
        )
    drawn = [
        d
        for d in eligible
        for _ in range(
            settings.long_boost if pool.lengths[d] >= settings.long_boost_min_tokens else 1
        )
    ]
    return [*shares, Share(LONG, np.array(drawn), settings.tokens * settings.long_share)]


TOKENIZER: Stage[TokenizerConfig] = Stage(
    verb="data.tokenizer",
    config=TokenizerConfig,
    run=run_tokenizer,
    inputs=("documents?", "samples*"),
    estimate=lambda c: Estimate(
        f"{c.vocab_size} tokens from {c.max_chars / 1e6:.0f} M characters", 3 + c.max_chars / 1e6
    ),
    help="learn a byte-level BPE tokenizer on the mixture",
)
SHARDS: Stage[ShardsConfig] = Stage(
    verb="data.shards",
    config=ShardsConfig,
    run=run_shards,
    inputs=("tokenizer", "documents?", "samples*"),
    estimate=lambda c: Estimate(
        f"{c.tokens / 1e6:,.1f} M tokens", 3 + c.tokens / 1e6, tokens=c.tokens
    ),
    help="tokenise documents and samples, and write the mixture in training order",
)
