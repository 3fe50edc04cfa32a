"""When to reuse, and what to put in the place of the blocks: the base of both, the rules and
predictors themselves, and what they share."""
