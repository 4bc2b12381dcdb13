"""Whole runs as YAML files, checked by a schema: `schema` states it, `load` reads and checks."""
