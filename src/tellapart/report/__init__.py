"""The report: one page that says how good a classifier is, why, and what to do next."""
