"""Opening or making a run, and what every page then looks at."""
