"""Whether a model is cached, and if not, why not and what helps: asked for with the report."""
