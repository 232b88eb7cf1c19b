"""Questions that people ask of effect tables and models, one module or package each."""
