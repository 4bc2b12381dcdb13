"""The data stages that recipes name."""

from __future__ import annotations

from phikit.data.semantic import SEMANTIC
from phikit.data.stage_corpus import CORPUS, FILTER
from phikit.data.stage_decontaminate import DECONTAMINATE
from phikit.data.stage_documents import DOCUMENTS
from phikit.data.stage_part import PART
from phikit.data.stage_tokens import SHARDS, TOKENIZER
from phikit.stage import Stage

STAGES: list[Stage] = [DOCUMENTS, FILTER, CORPUS, TOKENIZER, SHARDS, DECONTAMINATE, PART, SEMANTIC]
