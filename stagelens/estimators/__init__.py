"""Estimators: ways to obtain the model without a stage. One file each, behind one protocol."""
