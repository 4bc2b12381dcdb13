"""A corpus of any size, shard by shard: read, filter, deduplicate, decontaminate, tokenise."""
