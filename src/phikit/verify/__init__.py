"""Is this answer right? Mathematics, choices, code in a sandbox, formats, a judge."""
