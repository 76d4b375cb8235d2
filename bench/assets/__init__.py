"""Files of the project: embedded models and data, published figures, suites, templates."""
