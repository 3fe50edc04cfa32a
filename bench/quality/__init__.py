"""How far methods move what is drawn, and what they save."""
