"""The page of the regression gate."""
