"""Device kinds: one folder each, found by being here; its ``__init__`` holds its ``KIND`` and imports nothing."""
