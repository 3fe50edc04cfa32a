"""What the methods draw, side by side on one page."""
