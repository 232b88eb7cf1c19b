"""From models to effect tables, and from tables to summaries by stage and group."""
