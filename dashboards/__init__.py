"""Dashboards and rules for what vbnet exports, written as code.

    declarations of counters ──▶ promql ──▶ panels ──▶ overview, switching, … ──▶ deploy/grafana/dashboards/*.json
                                   └──────▶ rules, alerts ────────────────────▶ deploy/prometheus/*.yml

``python tools/make_dashboards.py`` writes the files; they are committed, and a test says when they are stale. Queries
take ``Metric`` objects and label names that a metric has: one that is renamed breaks the build, not the night shift.
"""
