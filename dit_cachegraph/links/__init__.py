"""Links: blocks that were compiled one by one, joined at run time into one trunk."""
