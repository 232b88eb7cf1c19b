"""A dossier: what is known of every stage of a run, for those who must answer for the model."""
