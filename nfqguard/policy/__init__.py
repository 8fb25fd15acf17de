"""What is allowed, as the operator wrote it: model, loading with all errors at once, presets, flat tables."""
