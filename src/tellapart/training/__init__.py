"""A recipe and photos become a run folder."""
