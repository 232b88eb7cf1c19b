"""Spurious features: gaps between groups, and features that go with a stage's effect.

``gaps`` compares known groups with and without each stage.
"""
