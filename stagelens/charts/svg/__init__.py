"""Figures as SVG without a browser: what reports hold whose charts are pictures.

Drawn from the same specification that plotly draws in a browser, plotly's JSON, as far as charts of
this package use it; :class:`~.writing.Undrawable` names what is beyond that.
"""
