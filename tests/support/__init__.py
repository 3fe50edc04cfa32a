"""What tests of several rooms share: tiny models, and ways to compile and run them."""
