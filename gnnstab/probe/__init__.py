"""Graph of rooms: model → trace."""
