"""Device kinds: one folder each, found by being here. A folder's ``__init__`` holds its ``KIND``, and nothing is imported."""
