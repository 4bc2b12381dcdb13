"""What a corpus is made from, by which rules, and what it is cut into."""

from __future__ import annotations

from pydantic import Field

from phikit.data.dedup import DedupConfig
from phikit.data.filter_steps import FilteringConfig
from phikit.data.item_index import DecontaminationConfig
from phikit.data.reading.base import ReaderConfig
from phikit.stage import Config


class CorpusConfig(Config):
    """The settings of a corpus. Its result depends on them, and on nothing else.

    `shard_bytes` alone changes no text of it: how it is cut, in which order its parts are done and
    by how many workers makes no difference to what is kept.
    """

    reader: ReaderConfig = Field(default_factory=ReaderConfig)
    filters: FilteringConfig = Field(default_factory=FilteringConfig)
    dedup: DedupConfig = Field(default_factory=DedupConfig)
    by_url: bool = Field(
        default=True, description="of documents with one web address, keep only the longest"
    )
    outliers: bool = Field(
        default=True, description="reject documents whose letters are unusual for their class"
    )
    decontamination: DecontaminationConfig = Field(default_factory=DecontaminationConfig)
    shard_bytes: int = Field(
        default=64_000_000,
        gt=0,
        description="bytes of input that are worked on at once; larger .jsonl and .parquet files "
        "are split. Memory goes with it",
    )
