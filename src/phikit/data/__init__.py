"""Documents in, training batches out: read, filter, deduplicate, decontaminate, mix, pack."""
