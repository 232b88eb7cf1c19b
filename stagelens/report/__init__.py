"""Findings that people pin, and the reports made of them.

A :class:`~stagelens.report.finding.Finding` keeps what was seen: the figure or the rows, the
sentence, and what every number needs to be understood later - trust, estimator, set, filters and
the digest of the run. Findings are kept in the run folder (:mod:`.store`); a report is a list of
them (:mod:`.sections`) written as one HTML page (:mod:`.page`), as CSV or as JSON (:mod:`.rows`).
"""
