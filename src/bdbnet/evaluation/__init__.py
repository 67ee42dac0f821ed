"""Network and images -> embeddings -> metrics, ranking lists and an analysis of the errors."""
