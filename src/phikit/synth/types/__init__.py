"""The procedural dataset types, one idea per file; `catalogue.TYPES` names them all."""
